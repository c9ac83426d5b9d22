// The input's gradient as a product of matrices, for processors with a matrix unit.
//
// Results are stored in a padded image, so that all taps apply to every pixel. A product sums over
// pairs of adjacent results. Filters and channels are taken by tiles.

#ifndef SIMAN_INPUT_BY_TILES_H_
#define SIMAN_INPUT_BY_TILES_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "convolution.h"
#include "input_gradient.h"
#include "tiles.h"
#include "variant.h"

namespace siman {

class InputByTiles : public InputGradient {
 public:
  static bool Covers(const Variant& variant, const Convolution& n, int64_t channels,
                     int64_t filters) {
    // With fewer pixels in a tile, loading weights takes longer than looking up sums.
    constexpr int64_t kFewest = 8;
    return variant.tiles != nullptr && n.stride == 1 && channels % kTile == 0 &&
           filters % kTile == 0 && n.width >= kFewest;
  }

  // `code` is the kernel [taps down, taps across, channels, filters]; values >= 0 count as +1.
  InputByTiles(const Variant& variant, const Convolution& n, int64_t channels, int64_t filters,
               const float* code)
      : variant_(variant),
        n_(n),
        channels_(channels),
        filters_(filters),
        pairs_((n.taps_across + 1) / 2),
        row_((n.width + 2 * pairs_) * kTile),
        code_(code),
        bits_(filters / kTile * (channels / kTile) * terms() * kTile) {
    // A row of pixels is split into parts of equal size; the last one may overlap the one before.
    const int64_t parts = (n.width + kTile - 1) / kTile;
    pixels_ = (n.width + parts - 1) / parts;
    for (int64_t part = 0; part < parts; ++part)
      columns_.push_back(std::min(part * pixels_, n.width - pixels_));
    band_ = std::clamp<int64_t>(kMostTiles / parts, 1, n.height);
    slots_ = band_ + n.taps_down - 1;
  }

  // A task computes the bits of one pair of taps.
  int64_t tasks() const override { return terms(); }

  void Prepare(int64_t task) override {
    const int64_t down = n_.taps_down - 1 - task / pairs_, pair = task % pairs_;
    const int64_t right = n_.taps_across - 1 - 2 * pair;
    const float* code = code_ + (down * n_.taps_across + right) * channels_ * filters_;
    for (int64_t block = 0; block < filters_ / kTile; ++block) {
      for (int64_t channel = 0; channel < channels_ / kTile; ++channel) {
        const float* own = code + channel * kTile * filters_ + block * kTile;
        const float* codes[2] = {own, right > 0 ? own - channels_ * filters_ : nullptr};
        variant_.tiles->signs(codes, filters_, Bits(block, channel) + task * kTile);
      }
    }
  }

  int64_t ScratchSize() const override {
    return kParts * slots_ * row_ + channels_ / kTile * terms() * kTileSize;
  }

  void Run(int64_t samples, const float* g, int64_t g_sample, int64_t across, int64_t g_step,
           const float* scale, float* scratch, float* da) const override {
    auto* results = reinterpret_cast<uint32_t*>(scratch);
    uint32_t* weights = results + kParts * slots_ * row_;
    variant_.tiles->begin(pixels_);
    for (int64_t block = 0; block < filters_ / kTile; ++block) {
      for (int64_t channel = 0; channel < channels_ / kTile; ++channel)
        Expand(block, channel, weights + channel * terms() * kTileSize);
      for (int64_t sample = 0; sample < samples; ++sample)
        RunBlock(g + sample * g_sample + block * kTile, across, g_step, scale + block * kTile,
                 results, weights, block == 0, da + sample * n_.height * n_.width * channels_);
    }
    variant_.tiles->end();
  }

 private:
  int64_t terms() const { return n_.taps_down * pairs_; }
  int64_t part_step() const { return slots_ * row_; }
  // [terms, kTile filters]
  uint32_t* Bits(int64_t block, int64_t channel) {
    return bits_.data() + (block * (channels_ / kTile) + channel) * terms() * kTile;
  }

  // Adds the contribution of one block of filters to da of a sample, [height, width, channels].
  void RunBlock(const float* g, int64_t across, int64_t g_step, const float* scale,
                uint32_t* results, const uint32_t* weights, bool fresh, float* da) const {
    int64_t built = 0;  // rows of results
    for (int64_t row = 0; row < n_.height; row += band_) {
      const int64_t rows = std::min(band_, n_.height - row);
      for (; built < row + rows + n_.taps_down - 1; ++built)
        Split(built, g, across, g_step, scale, results + built % slots_ * row_);
      std::vector<const uint32_t*>& starts = Starts();
      starts.clear();
      float* to[kMostTiles];
      int64_t tiles = 0;
      for (int64_t own = row; own < row + rows; ++own) {
        for (const int64_t column : columns_) {
          for (int64_t down = 0; down < n_.taps_down; ++down)
            starts.push_back(results + (own + down) % slots_ * row_ + (1 + column) * kTile);
          to[tiles++] = da + (own * n_.width + column) * channels_;
          if (tiles < kMostTiles && !(own == row + rows - 1 && column == columns_.back())) continue;
          for (int64_t channel = 0; channel < channels_ / kTile; ++channel) {
            variant_.tiles->multiply(tiles, n_.taps_down, pairs_, starts.data(), part_step(),
                                     weights + channel * terms() * kTileSize, fresh, to, channels_);
            for (float*& pointer : to) pointer += kTile;
          }
          starts.clear();
          tiles = 0;
        }
      }
    }
  }

  static std::vector<const uint32_t*>& Starts() {
    static thread_local std::vector<const uint32_t*> starts;
    return starts;
  }

  // Stores a row of results as pairs, with zeros before and after. The first result of the first
  // pixel is one pair after the beginning.
  void Split(int64_t row, const float* g, int64_t across, int64_t g_step, const float* scale,
             uint32_t* to) const {
    const int64_t from = row - (n_.taps_down - 1 - n_.top);
    const int64_t before = n_.taps_across - 1 - n_.left;
    const int64_t skipped = std::max<int64_t>(0, -before);
    const int64_t columns = std::min(n_.width + n_.taps_across - 1 - before, n_.columns) - skipped;
    const bool empty = from < 0 || from >= n_.rows || columns <= 0;
    const int64_t first = (before + skipped) * kTile, end = first + (columns + 1) * kTile;
    for (int64_t part = 0; part < kParts; ++part) {
      uint32_t* own = to + part * part_step();
      std::fill(own, own + (empty ? row_ : first), 0);
      if (!empty) std::fill(own + end, own + row_, 0);
    }
    if (!empty)
      variant_.tiles->split(columns, g + (from * across + skipped) * g_step, g_step, scale,
                            to + first, part_step());
  }

  // Computes the weights of a tile of channels. If the number of taps is odd, the last one is
  // alone.
  void Expand(int64_t block, int64_t channel, uint32_t* weights) const {
    const uint32_t* bits = const_cast<InputByTiles*>(this)->Bits(block, channel);
    for (int64_t term = 0; term < terms(); ++term) {
      const bool alone = 2 * (term % pairs_) + 1 >= n_.taps_across;
      variant_.tiles->expand(1, bits + term * kTile, alone ? 0x55555555 : 0xffffffff,
                             weights + term * kTileSize);
    }
  }

  const Variant& variant_;
  const Convolution& n_;
  int64_t channels_, filters_;
  int64_t pairs_;                 // pairs of taps in a row
  int64_t row_;                   // words in a row of results
  int64_t pixels_;                // pixels in a tile
  std::vector<int64_t> columns_;  // where tiles begin in a row of pixels
  int64_t band_, slots_;          // rows of pixels at a time, and rows of results that they need
  const float* code_;
  std::vector<uint32_t> bits_;  // [blocks of filters, tiles of channels, terms, kTile filters]
};

}  // namespace siman

#endif  // SIMAN_INPUT_BY_TILES_H_
