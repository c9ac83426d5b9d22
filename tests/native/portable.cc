// A variant for all compilers and machines, with vectors of kBytes bytes. So tests reach the widths
// of instruction sets that their machine does not have. It is compiled once for each width, with
// SIMAN_BYTES and the name of its namespace, SIMAN_NAMESPACE.

#if defined(__x86_64__)

#include <cstdint>

#include "variant.h"

#define SIMAN_TARGET

namespace siman::SIMAN_NAMESPACE {

constexpr int kBytes = SIMAN_BYTES;

#include "vectors.inc"

inline uint32_t AtLeast(const float* x, float least) {
  uint32_t bits = 0;
  for (int i = 0; i < kWidth; ++i) bits |= uint32_t{x[i] >= least} << i;
  return bits;
}

#include "packed.inc"
#define SIMAN_BY_PIXELS nullptr, nullptr
#define SIMAN_BY_EIGHTS nullptr, nullptr
#include "training.inc"

void MultiplyBits(const Taps& taps, const uint32_t* const* pixels, const uint32_t* kernel,
                  int64_t filters, int32_t terms, int32_t* const* y) {
  for (int64_t p = 0; p < kPixels; ++p) {
    for (int64_t filter = 0; filter < filters; ++filter) {
      const uint32_t* words = kernel + filter;
      int32_t unequal = 0;
      for (int64_t row = 0; row < taps.rows; ++row)
        for (int64_t i = 0; i < taps.values; ++i, words += taps.out)
          unequal += __builtin_popcount(*words ^ pixels[p][row * taps.image_row + i]);
      y[p][filter] = terms - 2 * unequal;
    }
  }
}

extern const Variant kVariant;
const Variant kVariant = {SIMAN_NAME, [] { return true; }, SIMAN_LOOPS, &kTraining, nullptr};

}  // namespace siman::SIMAN_NAMESPACE

#endif  // __x86_64__
