# The part of cuda-legacy's overlay that the flake uses.
final: _: {
  cudaPackages_11_8 = final._cuda.make final "11.8.0" "9.10.2";
  cudaPackages_12_4 = final._cuda.make final "12.4.1" "9.14.0";
}
