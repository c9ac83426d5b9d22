// The functions of a matrix unit: products of tiles of bfloat16, summed in float32.
//
// A float32 is split into three bfloat16 parts, each of which holds 8 of its 24 bits. So products
// with +-1 are exact, and only sums are rounded.

#ifndef SIMAN_TILES_H_
#define SIMAN_TILES_H_

#include <cstdint>

namespace siman {

constexpr int64_t kTile = 16;  // rows of a tile; a row has as many pairs of bfloat16, or floats
constexpr int64_t kTileSize = kTile * kTile;
constexpr int64_t kParts = 3;
constexpr int64_t kMostTiles = 4;  // tiles of sums at a time

struct Tiles {
  // Splits g * scale into its three parts, for kTile filters of a row of `pixels` pixels. They are
  // stored as pairs of a pixel and the next one, with 0 before the first and after the last pixel:
  // pixels + 1 rows of pairs for each part.
  void (*split)(int64_t pixels, const float* g, int64_t g_step, const float* scale, uint32_t* to,
                int64_t part_step);

  // Computes bits[filter] for kTile channels and filters: bit 2 * channel + i is 1 where
  // codes[i][channel][filter] is not negative, and 0 if codes[i] is null. Channels are `step`
  // numbers apart.
  void (*signs)(const float* const* codes, int64_t step, uint32_t* bits);

  // Expands bits to tiles [count, kTile, kTile] of pairs: +1 where a bit is set, else -1, and 0
  // where the bit of `used` is 0.
  void (*expand)(int64_t count, const uint32_t* bits, uint32_t used, uint32_t* tiles);

  // to[channel][pixel] = +1 where x >= least, else -1, as bfloat16, for kTile channels of pixels
  // that are x_step numbers apart.
  void (*transpose)(int64_t pixels, const float* x, int64_t x_step, float least, uint16_t* to,
                    int64_t to_step);

  // Splits pairs of pixels into their three parts, for kTile filters: [pairs, kTile] for each part.
  void (*pair_up)(int64_t pairs, const float* g, int64_t g_step, uint32_t* to, int64_t part_step);

  // To be called before and after calls of `multiply` with sums of `pixels` pixels, or of
  // `accumulate` with `pixels` = kTile.
  void (*begin)(int64_t pixels);
  void (*end)();

  // For up to kMostTiles tiles of sums: to[pixel][column] = (fresh ? 0 : to[pixel][column]) + the
  // sum, over parts, rows, pairs and the kTile entries of a row, of starts[row][2 * pair + pixel]
  // times weights [rows, pairs, kTile, kTile]. `starts` has `rows` entries for each tile; rows of
  // `to` are to_step numbers apart.
  void (*multiply)(int64_t tiles, int64_t rows, int64_t pairs, const uint32_t* const* starts,
                   int64_t part_step, const uint32_t* weights, bool fresh, float* const* to,
                   int64_t to_step);

  // For up to three taps: sums[tap][channel][filter] = (fresh ? 0 : itself) + the sum, over parts
  // and 2 * kTile * steps places, of signs[tap][channel][place] times the entry of `pairs` there.
  void (*accumulate)(int64_t taps, int64_t steps, const uint16_t* const* signs, int64_t signs_step,
                     const uint32_t* pairs, int64_t part_step, bool fresh, float* const* sums);
};

}  // namespace siman

#endif  // SIMAN_TILES_H_
