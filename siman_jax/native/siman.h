/* Runs a trained network, from normalized images to its result, without Python.
 *
 * A network is a list of operations in order. Each has one result and takes results of operations
 * before it, by their places in the list. The first operation is "images". Results are float32
 * with one shape for every image; the last axis is the channels, and an image is
 * [height, width, channels]. Signs are +1 and -1.
 *
 * Functions may be called from several threads at a time, also with the same network, and after a
 * fork. Those that can fail write what was wrong to `error`, as a string of at most `error_size`
 * bytes with its end; `error` may be null.
 *
 * The operations, with their numbers (integers, in this order) and their weights. Pairs are down
 * and across; padding is the number of zeros above, below, left and right. Float32 unless words are
 * named: these are uint32 and hold the bits of 32 input channels, the first one lowest; bit 1 is
 * +1, bit 0 is -1, and bits beyond the last channel are 0.
 *
 *   images        height, width, channels
 *   constant      weights: value [...]
 *   conv          strides 2, padding 4, dilation 2, groups; weights: kernel [height, width,
 *                 in / groups, out]
 *   binary_conv   strides 2, padding 4; weights: words [height, width, ceil(in / 32), out]
 *   dense         weights: kernel [in, out], for the last axis
 *   binary_dense  weights: words [ceil(in / 32), out], for [in]
 *   max_pool      window 2, strides 2, padding 4 (never the maximum)
 *   sum_pool      window 2, strides 2, padding 4 (zeros)
 *   sum, max      axes, in order; the result does not have them
 *   affine        x * scale + shift; weights: scale [channels], shift [channels], either may be
 *                 absent
 *   prelu         x where x > 0, else slope * x; weights: slope [channels]
 *   clip          min(max(x, low), high); weights: [2], low and high
 *   sigmoid, tanh
 *   softmax       along the last axis
 *   signs         +1 where x >= threshold, else -1; weights: threshold [channels]; absent for the
 *                 mean of the image's own numbers
 *   add, multiply two operands of equally many axes; axes of size 1 are repeated
 *   concatenate   axis; any number of operands
 *   pad           before, for each axis, and after, for each axis; weights: [1], the value
 *   slice         starts, stops, strides, for each axis
 *   reshape       sizes
 *   transpose     axes: axis i of the result is axes[i] of the operand
 *   broadcast     sizes; axes of size 1 are repeated
 */

#ifndef SIMAN_H_
#define SIMAN_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { SIMAN_FLOAT32 = 0, SIMAN_UINT32 = 1 };

/* An array in row-major order. It is absent if `data` is null. */
typedef struct {
  const void* data;
  int64_t type; /* SIMAN_FLOAT32 or SIMAN_UINT32 */
  int64_t rank;
  const int64_t* sizes;
} siman_array;

typedef struct {
  const char* kind; /* one of the names above */
  int64_t input_count;
  const int64_t* inputs; /* places of the operands */
  int64_t number_count;
  const int64_t* numbers;
  int64_t weight_count;
  const siman_array* weights;
} siman_operation;

typedef struct siman_network siman_network;

/* Prepares a network; null if that fails. `result` is the place of the operation whose result is
 * the network's. `variant` is the instruction set, by its name, or null for the fastest. Nothing
 * that the arguments point to is needed afterwards. */
siman_network* siman_create(int64_t count, const siman_operation* operations, int64_t result,
                            const char* variant, char* error, size_t error_size);

void siman_destroy(siman_network* network);

/* How many floats an image and its result are. */
int64_t siman_image_size(const siman_network* network);
int64_t siman_result_size(const siman_network* network);

/* Computes the results of `batch` images, on up to `threads` threads. Memory does not grow with
 * the batch. Returns 0, or 1 if it fails. */
int siman_run(siman_network* network, int64_t batch, const float* images, float* results,
              int64_t threads, char* error, size_t error_size);

#ifdef __cplusplus
}
#endif

#endif /* SIMAN_H_ */
