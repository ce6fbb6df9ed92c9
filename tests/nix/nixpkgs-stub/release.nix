# What is in nixos-26.05. The tests put another one in its place for nixos-25.11.
{
  name = "26.05";
  linux = "linux_6_18";
  torch = "2.12.0";
  triton = "3.7.0";
  drivers = {
    legacy_470 = "470.256.02";
    legacy_535 = "535.288.01";
    legacy_580 = "580.173.02";
    production = "595.84";
  };
}
