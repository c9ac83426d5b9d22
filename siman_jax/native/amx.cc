// AMX: AVX-512 with a matrix unit, which a process has to request from Linux.

#include "variants.h"

#ifdef SIMAN_HAS_AMX

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#include "tiles.h"

#define SIMAN_TARGET __attribute__((target("avx512f,avx512bw,amx-tile,amx-bf16")))

namespace siman::amx {
namespace {

bool Supported() {
  constexpr int kAskForPermission = 0x1023, kTileData = 18;
  static const bool supported =
      avx512::kVariant.supported() && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
      syscall(SYS_arch_prctl, kAskForPermission, kTileData) == 0;
  return supported;
}

SIMAN_TARGET void Split(int64_t pixels, const float* g, int64_t g_step, const float* scale,
                        uint32_t* to, int64_t part_step) {
  const __m512 scales = _mm512_loadu_ps(scale);
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  __m512i before[kParts] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
  for (int64_t p = 0; p <= pixels; ++p, to += kTile) {
    __m512 rest =
        p < pixels ? _mm512_mul_ps(_mm512_loadu_ps(g + p * g_step), scales) : _mm512_setzero_ps();
    for (int part = 0; part < kParts; ++part) {
      const __m512i own = _mm512_and_si512(_mm512_castps_si512(rest), high);
      rest = _mm512_sub_ps(rest, _mm512_castsi512_ps(own));
      _mm512_storeu_si512(to + part * part_step,
                          _mm512_or_si512(_mm512_srli_epi32(before[part], 16), own));
      before[part] = own;
    }
  }
}

SIMAN_TARGET void Signs(const float* const* codes, int64_t step, uint32_t* bits) {
  __m512i found = _mm512_setzero_si512();
  for (int i = 0; i < 2; ++i) {
    if (codes[i] == nullptr) continue;
    for (int channel = 0; channel < kTile; ++channel) {
      const __mmask16 plus = _mm512_cmp_ps_mask(_mm512_loadu_ps(codes[i] + channel * step),
                                                _mm512_setzero_ps(), _CMP_GE_OQ);
      const __m512i bit = _mm512_set1_epi32(static_cast<int>(1u << (2 * channel + i)));
      found = _mm512_mask_or_epi32(found, plus, found, bit);
    }
  }
  _mm512_storeu_si512(bits, found);
}

SIMAN_TARGET void Expand(int64_t count, const uint32_t* bits, uint32_t used, uint32_t* tiles) {
  const __m512i plus = _mm512_maskz_set1_epi16(used, 0x3f80);
  const __m512i minus = _mm512_maskz_set1_epi16(used, static_cast<int16_t>(0xbf80));
  for (int64_t row = 0; row < count * kTile; ++row)
    _mm512_storeu_si512(tiles + row * kTile, _mm512_mask_blend_epi16(bits[row], minus, plus));
}

SIMAN_TARGET void Transpose(int64_t pixels, const float* x, int64_t x_step, float least,
                            uint16_t* to, int64_t to_step) {
  constexpr int64_t kMost = 32;
  const __m512 limit = _mm512_set1_ps(least);
  const __m512i plus = _mm512_set1_epi16(0x3f80);
  const __m512i minus = _mm512_set1_epi16(static_cast<int16_t>(0xbf80));
  for (int64_t first = 0; first < pixels; first += kMost) {
    const int64_t count = pixels - first < kMost ? pixels - first : kMost;
    uint16_t signs[kMost] = {};  // one bit per channel
    for (int64_t p = 0; p < count; ++p)
      signs[p] = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + (first + p) * x_step), limit, _CMP_GE_OQ);
    const __m512i all = _mm512_loadu_si512(signs);
    const auto inside = static_cast<__mmask32>((uint64_t{1} << count) - 1);
    for (int channel = 0; channel < kTile; ++channel) {
      const __mmask32 set =
          _mm512_test_epi16_mask(all, _mm512_set1_epi16(static_cast<int16_t>(1 << channel)));
      _mm512_mask_storeu_epi16(to + channel * to_step + first, inside,
                               _mm512_mask_blend_epi16(set, minus, plus));
    }
  }
}

SIMAN_TARGET void PairUp(int64_t pairs, const float* g, int64_t g_step, uint32_t* to,
                         int64_t part_step) {
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  for (int64_t pair = 0; pair < pairs; ++pair, g += 2 * g_step, to += kTile) {
    __m512 first = _mm512_loadu_ps(g), second = _mm512_loadu_ps(g + g_step);
    for (int part = 0; part < kParts; ++part) {
      const __m512i a = _mm512_and_si512(_mm512_castps_si512(first), high);
      const __m512i b = _mm512_and_si512(_mm512_castps_si512(second), high);
      _mm512_storeu_si512(to + part * part_step, _mm512_or_si512(_mm512_srli_epi32(a, 16), b));
      first = _mm512_sub_ps(first, _mm512_castsi512_ps(a));
      second = _mm512_sub_ps(second, _mm512_castsi512_ps(b));
    }
  }
}

// Tiles 0 to 3 hold sums, 4 to 6 the three parts, 7 weights.
SIMAN_TARGET void Begin(int64_t pixels) {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes_of_row[16] = {};
    uint8_t rows[16] = {};
  } sizes;  // as the processor reads them
  for (int tile = 0; tile < 8; ++tile) {
    sizes.bytes_of_row[tile] = 64;
    sizes.rows[tile] = static_cast<uint8_t>(tile < 7 ? pixels : kTile);
  }
  __asm__ volatile("" : : "r"(&sizes) : "memory");  // GCC assumes that only 8 bytes are read
  _tile_loadconfig(&sizes);
}

SIMAN_TARGET void End() { _tile_release(); }

template <int kCount>
SIMAN_TARGET void MultiplyTiles(int64_t rows, int64_t pairs, const uint32_t* const* starts,
                                int64_t part_step, const uint32_t* weights, bool fresh,
                                float* const* to, int64_t to_step) {
// The instructions need constant tile numbers, so a loop variable does not work.
#define SIMAN_FOR_TILES(body)        \
  body(0);                           \
  if constexpr (kCount > 1) body(1); \
  if constexpr (kCount > 2) body(2); \
  if constexpr (kCount > 3) body(3);
#define SIMAN_BEGIN(tile)                       \
  {                                             \
    if (fresh)                                  \
      _tile_zero(tile);                         \
    else                                        \
      _tile_loadd(tile, to[tile], to_step * 4); \
  }
#define SIMAN_ADD(tile)                                                  \
  {                                                                      \
    const uint32_t* from = starts[tile * rows + row] + 2 * pair * kTile; \
    _tile_loadd(4, from, 64);                                            \
    _tile_dpbf16ps(tile, 4, 7);                                          \
    _tile_loadd(5, from + part_step, 64);                                \
    _tile_dpbf16ps(tile, 5, 7);                                          \
    _tile_loadd(6, from + 2 * part_step, 64);                            \
    _tile_dpbf16ps(tile, 6, 7);                                          \
  }
#define SIMAN_END(tile) _tile_stored(tile, to[tile], to_step * 4)
  SIMAN_FOR_TILES(SIMAN_BEGIN)
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t pair = 0; pair < pairs; ++pair, weights += kTileSize) {
      _tile_loadd(7, weights, 64);
      SIMAN_FOR_TILES(SIMAN_ADD)
    }
  }
  SIMAN_FOR_TILES(SIMAN_END)
#undef SIMAN_FOR_TILES
#undef SIMAN_BEGIN
#undef SIMAN_ADD
#undef SIMAN_END
}

SIMAN_TARGET void Multiply(int64_t tiles, int64_t rows, int64_t pairs,
                           const uint32_t* const* starts, int64_t part_step,
                           const uint32_t* weights, bool fresh, float* const* to, int64_t to_step) {
  switch (tiles) {
    case 1: return MultiplyTiles<1>(rows, pairs, starts, part_step, weights, fresh, to, to_step);
    case 2: return MultiplyTiles<2>(rows, pairs, starts, part_step, weights, fresh, to, to_step);
    case 3: return MultiplyTiles<3>(rows, pairs, starts, part_step, weights, fresh, to, to_step);
    default: return MultiplyTiles<4>(rows, pairs, starts, part_step, weights, fresh, to, to_step);
  }
}

// Tiles 0 to 2 hold sums, 3 to 5 signs, 6 pairs.
template <int kTaps>
SIMAN_TARGET void AccumulateTaps(int64_t steps, const uint16_t* const* signs, int64_t signs_step,
                                 const uint32_t* pairs, int64_t part_step, bool fresh,
                                 float* const* sums) {
#define SIMAN_FOR_TAPS(body)           \
  body(0, 3);                          \
  if constexpr (kTaps > 1) body(1, 4); \
  if constexpr (kTaps > 2) body(2, 5);
#define SIMAN_BEGIN(tap, tile)         \
  {                                    \
    if (fresh)                         \
      _tile_zero(tap);                 \
    else                               \
      _tile_loadd(tap, sums[tap], 64); \
  }
#define SIMAN_LOAD_SIGNS(tap, tile) _tile_loadd(tile, signs[tap] + step * 2 * kTile, signs_step * 2)
#define SIMAN_ADD(tap, tile) _tile_dpbf16ps(tap, tile, 6)
#define SIMAN_END(tap, tile) _tile_stored(tap, sums[tap], 64)
  SIMAN_FOR_TAPS(SIMAN_BEGIN)
  for (int64_t step = 0; step < steps; ++step) {
    SIMAN_FOR_TAPS(SIMAN_LOAD_SIGNS)
    for (int part = 0; part < kParts; ++part) {
      _tile_loadd(6, pairs + part * part_step + step * kTileSize, 64);
      SIMAN_FOR_TAPS(SIMAN_ADD)
    }
  }
  SIMAN_FOR_TAPS(SIMAN_END)
#undef SIMAN_FOR_TAPS
#undef SIMAN_BEGIN
#undef SIMAN_LOAD_SIGNS
#undef SIMAN_ADD
#undef SIMAN_END
}

SIMAN_TARGET void Accumulate(int64_t taps, int64_t steps, const uint16_t* const* signs,
                             int64_t signs_step, const uint32_t* pairs, int64_t part_step,
                             bool fresh, float* const* sums) {
  switch (taps) {
    case 1: return AccumulateTaps<1>(steps, signs, signs_step, pairs, part_step, fresh, sums);
    case 2: return AccumulateTaps<2>(steps, signs, signs_step, pairs, part_step, fresh, sums);
    default: return AccumulateTaps<3>(steps, signs, signs_step, pairs, part_step, fresh, sums);
  }
}

const Tiles kTiles = {Split, Signs, Expand, Transpose, PairUp, Begin, End, Multiply, Accumulate};

// Everything else is that of AVX-512.
Variant WithTiles() {
  Variant variant = avx512::kVariant;
  variant.name = "amx";
  variant.supported = Supported;
  variant.tiles = &kTiles;
  return variant;
}

}  // namespace

const Variant kVariant = WithTiles();

}  // namespace siman::amx

#endif  // SIMAN_HAS_AMX
