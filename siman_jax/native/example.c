/* A small network in C: build it, run it, print its results.
 *
 *   cd siman_jax/native
 *   library=$(python -c 'from siman_jax.native.shared import path; print(path())')
 *   cc -I . example.c "$library" -Wl,-rpath,"$(dirname "$library")" -o example
 *   ./example
 */

#include <stdio.h>

#include "siman.h"

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

int main(void) {
  /* Images of 2 x 2 pixels with one channel; their signs about the mean; a binary 2 x 2 convolution
   * to three channels, as one number for each; a scale. */
  const int64_t sizes[] = {2, 2, 1}, window[] = {1, 1, 0, 0, 0, 0};
  const int64_t images[] = {0}, signs[] = {1}, sums[] = {2};

  /* The four taps of three filters. There is one channel, so only the lowest bit is used. */
  const uint32_t bits[] = {1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0, 0};
  const int64_t bits_sizes[] = {2, 2, 1, 3};
  const float scale[] = {0.5f, 1, 2}, shift[] = {0, 0.25f, -1};
  const int64_t channels[] = {3};
  const siman_array words[] = {{bits, SIMAN_UINT32, 4, bits_sizes}};
  const siman_array threshold[] = {{NULL, SIMAN_FLOAT32, 0, NULL}};
  const siman_array norm[] = {{scale, SIMAN_FLOAT32, 1, channels},
                              {shift, SIMAN_FLOAT32, 1, channels}};

  const siman_operation operations[] = {
      {"images", 0, NULL, COUNT(sizes), sizes, 0, NULL},
      {"signs", 1, images, 0, NULL, 1, threshold},
      {"binary_conv", 1, signs, COUNT(window), window, 1, words},
      {"affine", 1, sums, 0, NULL, 2, norm},
  };

  char error[200];
  siman_network* network =
      siman_create(COUNT(operations), operations, 3, NULL, error, sizeof(error));
  if (network == NULL) {
    fprintf(stderr, "%s\n", error);
    return 1;
  }

  const float two_images[] = {1, 2, 3, 4, 9, 0, 0, 9};
  float results[6];
  const int failed = siman_run(network, 2, two_images, results, 1, error, sizeof(error));
  if (failed)
    fprintf(stderr, "%s\n", error);
  else
    for (int image = 0; image < 2; ++image)
      printf("%g %g %g\n", results[3 * image], results[3 * image + 1], results[3 * image + 2]);
  siman_destroy(network);
  return failed;
}
