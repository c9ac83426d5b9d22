// The inner loops that each instruction set implements, as functions that are chosen at run time.
// Everything else in the library is plain C++.
//
// Each set has a file and a namespace of its own, and each function there names its target by an
// attribute. Compiler flags or pragmas would also affect included inline functions. The linker
// keeps only one copy of these, which might then not run on all machines.

#ifndef SIMAN_VARIANT_H_
#define SIMAN_VARIANT_H_

#include <cstdint>

#include "tiles.h"
#include "training.h"

namespace siman {

constexpr int64_t kLanes = 16;    // filters, and channels in memory, are multiples of this
constexpr int64_t kFilters = 64;  // most filters and
constexpr int64_t kPixels = 4;    // pixels of one multiplication: their sums fill the registers

// A kernel applied to a padded image. Values are words of bits, or floats. The values of one row of
// taps are contiguous in both.
struct Taps {
  int64_t rows;       // rows of the kernel
  int64_t values;     // in one of its rows: kernel width * values of a pixel
  int64_t image_row;  // values between two rows of the padded image
  int64_t out;        // values between two values of one filter: how many filters there are
};

// What follows a product: y = clip(PReLU(gain * sum + offset + more)), for each filter. A slope of
// 1 leaves numbers as they are, and so do infinite limits.
struct Finish {
  const float *gain, *offset, *slope;
  float least, most;
};

// Lengths and numbers of filters are multiples of kLanes.
struct Variant {
  const char* name;
  bool (*supported)();  // whether this processor and its system support it

  // y[p][f] = terms - 2 * (number of bits in which filter f differs from the image at pixels[p]),
  // for kPixels pixels and up to kFilters filters. This is their product without padding.
  void (*multiply_bits)(const Taps&, const uint32_t* const* pixels, const uint32_t* kernel,
                        int64_t filters, int32_t terms, int32_t* const* y);

  // y[p][f] = sum of filter f times the image at pixels[p]; likewise.
  void (*multiply_floats)(const Taps&, const float* const* pixels, const float* kernel,
                          int64_t filters, float* const* y);

  // y += all - (inner - above - before + both)
  void (*add_border)(int64_t length, const int32_t* all, const int32_t* inner, const int32_t* above,
                     const int32_t* before, const int32_t* both, int32_t* y);

  // y[p] = what `finish` makes of sums[p] and, unless `more` is null, more[p]; adds all of y to
  // kLanes totals. `more` may be y.
  void (*finish_sums)(const Finish& finish, int64_t pixels, int64_t filters,
                      const int32_t* const* sums, const float* const* more, float* const* y,
                      float* totals);
  void (*finish_floats)(const Finish& finish, int64_t pixels, int64_t filters,
                        const float* const* sums, const float* const* more, float* const* y,
                        float* totals);

  // x = max(gain * x + offset, least), for `filters` channels of each of `pixels` pixels.
  void (*normalize)(int64_t pixels, int64_t filters, const float* gain, const float* offset,
                    float least, float* x);

  // Bit i of the words is 1 where x[i] >= least.
  void (*pack)(int64_t length, const float* x, float least, uint32_t* words);

  // y = max(a, b, c)
  void (*max3)(int64_t length, const float* a, const float* b, const float* c, float* y);

  // y_left = left + (s + t), y_right = right + (s - t): a pair of outputs, see `stem.h`.
  void (*join_pair)(int64_t length, const float* left, const float* s, const float* t,
                    const float* right, float* y_left, float* y_right);

  // y += x
  void (*add)(int64_t length, const float* x, float* y);

  const Training* training;
  const Tiles* tiles;  // null without a matrix unit

  // Like `multiply_bits`, with a kernel that was rearranged before: `arrange_bits` rearranges a
  // block of filters [values, filters] in its place. Null where `multiply_bits` is as fast.
  void (*arrange_bits)(int64_t values, int64_t filters, uint32_t* kernel) = nullptr;
  void (*multiply_arranged)(const Taps&, const uint32_t* const* pixels, const uint32_t* kernel,
                            int64_t filters, int32_t terms, int32_t* const* y) = nullptr;
};

// The functions of a namespace for these fields, in order.
#define SIMAN_LOOPS                                                                         \
  MultiplyBits, MultiplyFloats, AddBorder, FinishSums, FinishFloats, Normalize, Pack, Max3, \
      JoinPair, Add

}  // namespace siman

#endif  // SIMAN_VARIANT_H_
