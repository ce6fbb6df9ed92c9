# The wheels of a lock for one Python, in the form that fetchPypi takes. Plain builtins, no nixpkgs.
let
  inherit (builtins)
    concatMap
    elem
    elemAt
    filter
    head
    length
    match
    split
    ;

  # "name-version[-build]-python-abi-platform.whl", the form of PEP 427. fetchPypi knows no build
  # tag, and puts the version into nothing but the address: there the tag may follow it.
  parse =
    file:
    let
      stem = head (match "(.*)[.]whl" file);
      parts = filter builtins.isString (split "-" stem);
      at = elemAt parts;
      tags = length parts - 3;
    in
    {
      format = "wheel";
      pname = at 0;
      version = if tags == 3 then "${at 1}-${at 2}" else at 1;
      python = at tags;
      dist = at tags;
      abi = at (tags + 1);
      platform = at (tags + 2);
    };

  wheel = package: file: {
    inherit (package) name version;
    inherit (file) sha256;
    file = file.name;
    source = parse file.name // {
      inherit (file) sha256;
    };
  };
in
{
  # [ { name, version, file, sha256, source } ]: `source` are the arguments of fetchPypi.
  wheelsFor =
    lock: python:
    concatMap (
      package: map (wheel package) (filter (file: elem python file.pythons) package.files)
    ) lock.package;
}
