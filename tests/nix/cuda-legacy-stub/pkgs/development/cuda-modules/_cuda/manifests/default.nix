# The cuDNN versions of cuda-legacy, by their first, some in between and their last.
{ lib }:
{
  cudnn =
    lib.genAttrs
      [
        "8.5.0"
        "8.7.0"
        "8.8.0"
        "8.9.7"
        "9.1.0"
        "9.10.2"
        "9.11.0"
        "9.14.0"
        "9.9.0"
      ]
      (version: {
        release_date = version;
      });
}
