# Which symbols are in Python's stable ABI, and since when: legacy-cuda asks it about a wheel that
# says it is for abi3. Version and sha256 are those of python/requirements.txt.
{
  lib,
  buildPythonPackage,
  fetchPypi,
}:

buildPythonPackage rec {
  pname = "abi3info";
  version = "2026.9.25";
  format = "wheel";

  src = fetchPypi {
    inherit pname version format;
    dist = "py3";
    python = "py3";
    sha256 = "d5cbf46f358a4e0cafa171572adb67e5dce14a1b316e3c9f577234dbafcd5214";
  };

  pythonImportsCheck = [ "abi3info" ];

  meta = {
    description = "Python's stable ABI as a library";
    homepage = "https://github.com/woodruffw/abi3info";
    license = lib.licenses.mit;
  };
}
