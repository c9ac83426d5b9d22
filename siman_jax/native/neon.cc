// NEON, which every 64-bit ARM processor has.

#if defined(__aarch64__)

#include <arm_neon.h>

#include <algorithm>
#include <cstdint>

#include "variants.h"

#define SIMAN_TARGET

namespace siman::neon {

constexpr int kBytes = 16;

#include "vectors.inc"

inline uint32_t AtLeast(const float* x, float least) {
  const uint32x4_t bits = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(vcgeq_f32(vld1q_f32(x), vdupq_n_f32(least)), bits));
}

#include "packed.inc"
// No register can hold a table of sixteen floats.
#define SIMAN_BY_PIXELS nullptr, nullptr
#define SIMAN_BY_EIGHTS nullptr, nullptr
#include "training.inc"

// Counts of ones are summed in bytes, which hold up to 255: 31 words of at most 8 ones per byte.
void MultiplyBits(const Taps& taps, const uint32_t* const* pixels, const uint32_t* kernel,
                  int64_t filters, int32_t terms, int32_t* const* y) {
  for (int64_t first = 0; first < filters; first += 16) {
    const uint32_t* words = kernel + first;
    uint32x4_t sums[kPixels][4];
    for (auto& vectors : sums)
      for (auto& vector : vectors) vector = vdupq_n_u32(0);
    for (int64_t row = 0; row < taps.rows; ++row) {
      for (int64_t start = 0; start < taps.values; start += 31) {
        uint8x16_t bytes[kPixels][4];
        for (auto& vectors : bytes)
          for (auto& vector : vectors) vector = vdupq_n_u8(0);
        const int64_t stop = std::min<int64_t>(taps.values, start + 31);
        for (int64_t i = row * taps.image_row + start; i < row * taps.image_row + stop; ++i) {
          for (int v = 0; v < 4; ++v) {
            const uint32x4_t filter = vld1q_u32(words + v * 4);
            for (int p = 0; p < kPixels; ++p) {
              const uint32x4_t unequal = veorq_u32(filter, vdupq_n_u32(pixels[p][i]));
              bytes[p][v] = vaddq_u8(bytes[p][v], vcntq_u8(vreinterpretq_u8_u32(unequal)));
            }
          }
          words += taps.out;
        }
        for (int p = 0; p < kPixels; ++p)
          for (int v = 0; v < 4; ++v) sums[p][v] = vpadalq_u16(sums[p][v], vpaddlq_u8(bytes[p][v]));
      }
    }
    for (int p = 0; p < kPixels; ++p) {
      for (int v = 0; v < 4; ++v) {
        const int32x4_t unequal = vreinterpretq_s32_u32(sums[p][v]);
        vst1q_s32(y[p] + first + v * 4, vmlsq_n_s32(vdupq_n_s32(terms), unequal, 2));
      }
    }
  }
}

bool Supported() { return true; }

const Variant kVariant = {"neon", Supported, SIMAN_LOOPS, &kTraining, nullptr};

}  // namespace siman::neon

#endif  // __aarch64__
