// What a processor with a matrix unit contributes: products of tiles of bfloat16, summed in
// float32.
//
// A float32 is the sum of three bfloat16, its parts, since each of these holds 8 of its 24 bits. So
// products with +-1 are exact, and only sums round.

#ifndef SIMAN_TILES_H_
#define SIMAN_TILES_H_

#include <cstdint>

namespace siman {

constexpr int64_t kTile = 16;  // rows of a tile, and pairs of bfloat16 or floats in one
constexpr int64_t kTileSize = kTile * kTile;
constexpr int64_t kParts = 3;
constexpr int64_t kMostTiles = 4;  // of sums at a time

struct Tiles {
  // The three parts of g * scale for kTile filters of a row of `pixels` pixels, as pairs of what a
  // pixel and the next one have; 0 stands before the first and behind the last. Gives pixels + 1
  // rows of pairs of each part, the first one for the pixel before the first.
  void (*split)(int64_t pixels, const float* g, int64_t g_step, const float* scale, uint32_t* to,
                int64_t part_step);

  // bits[filter], of kTile channels and filters: bit 2 * channel + i tells whether
  // codes[i][channel] [filter] is not negative, or is 0 where codes[i] is null. Channels are `step`
  // numbers apart.
  void (*signs)(const float* const* codes, int64_t step, uint32_t* bits);

  // Tiles [count, kTile, kTile] of pairs of +1 where a bit is set, else -1; 0 where `used` has
  // none.
  void (*expand)(int64_t count, const uint32_t* bits, uint32_t used, uint32_t* tiles);

  // to[channel][pixel] = +1 where x >= least, else -1, as bfloat16, for kTile channels of pixels
  // that are x_step numbers apart.
  void (*transpose)(int64_t pixels, const float* x, int64_t x_step, float least, uint16_t* to,
                    int64_t to_step);

  // The three parts of pairs of pixels, for kTile filters: [pairs, kTile] of each part.
  void (*pair_up)(int64_t pairs, const float* g, int64_t g_step, uint32_t* to, int64_t part_step);

  // Before and after some calls of `multiply` with sums of `pixels` pixels, or, with kTile of them,
  // of `accumulate`.
  void (*begin)(int64_t pixels);
  void (*end)();

  // For up to kMostTiles tiles of sums: to[pixel][column] = (fresh ? 0 : to[pixel][column]) + the
  // sum over parts, rows, pairs and the kTile of a row of starts[row][2 * pair + pixel] times
  // weights [rows, pairs, kTile, kTile]. `starts` has `rows` for each tile; `to` rows are to_step
  // numbers apart.
  void (*multiply)(int64_t tiles, int64_t rows, int64_t pairs, const uint32_t* const* starts,
                   int64_t part_step, const uint32_t* weights, bool fresh, float* const* to,
                   int64_t to_step);

  // For up to three taps: sums[tap][channel][filter] = (fresh ? 0 : itself) + the sum over parts
  // and 2 * kTile * steps places of signs[tap][channel][place] times what pairs hold there.
  void (*accumulate)(int64_t taps, int64_t steps, const uint16_t* const* signs, int64_t signs_step,
                     const uint32_t* pairs, int64_t part_step, bool fresh, float* const* sums);
};

}  // namespace siman

#endif  // SIMAN_TILES_H_
