# Modules of NixOS that take the place of the stub's options, by name: a test run with a checkout of
# nixpkgs puts their paths here.
{ }
