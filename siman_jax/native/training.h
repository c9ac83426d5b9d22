// What an instruction set contributes to training: inner loops, chosen when the program runs.
//
// Gradients of a binary convolution are sums of products of floats and +-1. Four floats have only
// sixteen sums with signs, so these stand in a table, and the four bits that the floats meet are
// the place of their sum: one addition does the work of four multiply-adds.

#ifndef SIMAN_TRAINING_H_
#define SIMAN_TRAINING_H_

#include <cstdint>

namespace siman {

constexpr int64_t kFour = 4;           // floats of one table
constexpr int64_t kSums = 16;          // their sums with signs
constexpr int64_t kTableFilters = 16;  // filters of a table of the kernel's gradient
constexpr int64_t kFloatsOfTable = kSums * kTableFilters;
constexpr int64_t kMostTaps = 16;      // of one call of add_rows or add_pixels
constexpr int64_t kFoursOfPlaces = 8;  // whose places in tables are one number of 32 bits
constexpr uint8_t kBit = 8;            // a bit in the bytes that become places in tables

enum class Activation : int64_t { kNone, kPRelu, kHardTanh };

// What stands for the derivative of a sign at u.
enum class Estimator : int64_t {
  kOne,
  kApprox,
  kStraightThrough
};  // 1, max(0, 2 - 2|u|), |u| <= 1

// z = (y - centre) * gain + offset + shortcut, and activation(z); all per channel.
struct BatchNorm {
  const float* centre;
  const float* gain;
  const float* offset;
  const float* slope;  // of the PReLU; null otherwise
  Activation activation;
};

// dy = scale * dz - shift - slant * (y - centre); all per channel.
struct BatchNormGradient {
  const float* scale;
  const float* shift;
  const float* slant;
};

// Activations y before the norm: floats, or sums of +-1.
struct Numbers {
  const float* floats;  // null where they are
  const int16_t* sums;
};

// Arrays are [pixels, channels], with any number of either, unless said otherwise.
struct Training {
  int64_t width;  // floats of a vector

  double (*sum)(int64_t length, const float* x);

  // Sum of (x - mean)^2.
  double (*squares)(int64_t length, const float* x, float mean);

  // bytes = kBit where x >= least, else 0.
  void (*to_bytes)(int64_t length, const float* x, float least, uint8_t* bytes);

  // to = a + 2 b + 4 c + 8 d, with b to d at distances `step`, 2 step and 3 step from a.
  void (*join_bytes)(int64_t length, const uint8_t* a, int64_t step, uint8_t* to);

  // Pixels of x are kFilters numbers apart, those of the result `step`.
  void (*to_shorts)(int64_t pixels, int64_t filters, const int32_t* x, int64_t step, int16_t* to);

  // y = x * scale; likewise.
  void (*scale_sums)(int64_t pixels, int64_t filters, const int32_t* x, const float* scale,
                     int64_t step, float* y);

  // Adds y, or (y - mean)^2, to a total per channel. Pixels are `step` numbers apart.
  void (*add_up)(int64_t pixels, int64_t channels, int64_t step, Numbers y, float* totals);
  void (*add_up_squares)(int64_t pixels, int64_t channels, Numbers y, const float* mean,
                         float* totals);

  void (*norm)(int64_t pixels, int64_t channels, const BatchNorm& norm, Numbers y,
               const float* shortcut, float* out);

  // Adds dz, dz * (y - centre) and the slope's gradient to totals [3, channels]. The shortcut may
  // be null.
  void (*norm_sums)(int64_t pixels, int64_t channels, const BatchNorm& norm, const float* dout,
                    Numbers y, const float* shortcut, float* totals);

  // dy, and dz where that is not null. Pixels of dout, y, the shortcut and dz are `step` numbers
  // apart, those of dy `dy_step`.
  void (*norm_gradient)(int64_t pixels, int64_t channels, const BatchNorm& norm,
                        const BatchNormGradient& gradient, int64_t step, const float* dout,
                        Numbers y, const float* shortcut, int64_t dy_step, float* dy, float* dz);

  // Tables of the kernel's gradient, [fours, kSums, kTableFilters]: at bits b the sum of
  // (bit i of b ? +1 : -1) * g[4 * four + i]. Rows of g are `stride` apart.
  void (*filter_tables)(int64_t fours, const float* g, int64_t stride, float* tables);

  // sums[c] = (fresh ? 0 : sums[c]) + the sum over fours of the table's row at place[starts[four] +
  // c], a byte that counts kBit for one; sums are [channels, kTableFilters], channels a multiple of
  // 8.
  void (*look_up)(int64_t fours, const float* tables, const int32_t* starts, const uint8_t* places,
                  int64_t channels, bool fresh, float* sums);

  // gradient = scale * (outside + the sum over blocks of sums), kTableFilters numbers. Sums of two
  // blocks are `step` apart.
  void (*combine)(int64_t blocks, int64_t step, const float* sums, const double* outside,
                  const float* scale, float* gradient);

  // Tables of the input's gradient, [fours, kSums, lanes], from rows [4 * fours, lanes].
  void (*row_tables)(int64_t fours, int64_t lanes, const float* rows, float* tables);

  // sums[c] = (fresh ? 0 : sums[c]) + the sum over taps and terms of
  // tables[tap][places[c][tap][term] + lane], for `lanes` lanes, a multiple of kLanes.
  void (*add_rows)(int64_t lanes, int64_t channels, int64_t taps, const float* const* tables,
                   int64_t terms, const uint16_t* const* places, int64_t places_step, bool fresh,
                   float* sums, int64_t sums_step);

  // Tables [pixels, to_step], of a pixel [fours, kSums]: at bits b the sum of
  // (bit i of b ? +1 : -1) * g[pixel][4 * four + i] * scale[4 * four + i], with a multiple of 4 of
  // fours. Null where add_pixels is.
  void (*pixel_tables)(int64_t pixels, int64_t fours, const float* g, int64_t g_step,
                       const float* scale, float* to, int64_t to_step);

  // sums[pixel][c] = (fresh ? 0 : sums[pixel][c]) + the sum over taps and fours of the number of
  // tables[tap][pixel][four] at the four bits that places[tap][c] has for it, with a multiple of
  // kSums of channels. Null where a register cannot be such a table.
  void (*add_pixels)(int64_t pixels, int64_t channels, int64_t taps, const float* const* tables,
                     int64_t table_step, int64_t fours, const uint32_t* const* places, bool fresh,
                     float* sums, int64_t sums_step);

  // to[c][pixel] = from[pixel][c] * scale[c]; without the scale where it is null. Steps are in
  // floats. The way back is the same with pixels and channels exchanged.
  void (*to_rows)(int64_t pixels, int64_t channels, const float* from, int64_t from_step,
                  const float* scale, float* to, int64_t to_step);

  // sums[value][filter] += sum over pixels of x[pixel * x_step + value] * g[pixel * filters +
  // filter], filters a multiple of kLanes.
  void (*add_products)(int64_t pixels, int64_t values, int64_t x_step, const float* x,
                       int64_t filters, const float* g, float* sums);

  // y[c] = the greatest of count pixels, the first one of equals, and which[c] its place; NaN is
  // more than any number.
  void (*max_of)(int64_t channels, int64_t count, const float* const* pixels, const uint8_t* places,
                 float* y, uint8_t* which);

  // dx[c] = the sum of g[i][c] over those i where which[i][c] is places[i].
  void (*add_chosen)(int64_t channels, int64_t count, const float* const* g,
                     const uint8_t* const* which, const uint8_t* places, float* dx);

  // How many keys are below `least`.
  int64_t (*count_below)(int64_t length, const int32_t* keys, int32_t least);

  // The ranks[lane]-th smallest of each of kLanes columns; for rank -1 it is 0. Keys are
  // [rows, kLanes] and not negative.
  void (*kth_of_columns)(int64_t rows, const int32_t* keys, const int32_t* ranks, int32_t* found);

  // Latent kernels, from here to code_back: rows of `filters` weights, `step` numbers apart. Of
  // arrays with a deviation, u = (w - mean) / deviation.

  // keys = the bits of |u|, or of |w - mean| where the deviation is null. Rows of keys are
  // `keys_step` numbers apart.
  void (*magnitudes)(int64_t rows, int64_t filters, int64_t step, const float* w, const float* mean,
                     const float* deviation, int64_t keys_step, int32_t* keys);

  // w - mean, its magnitude clipped to low and high; rows follow each other.
  void (*clip)(int64_t rows, int64_t filters, const float* w, const float* mean, float low,
               float high, float* clipped);

  // Adds w, or (w - mean)^2 where the mean is not null, to a total per filter.
  void (*sum_columns)(int64_t rows, int64_t filters, int64_t step, const float* w,
                      const float* mean, double* totals);

  // code = +1 where a key [rows, kLanes] exceeds least, else -1.
  void (*code_above)(int64_t rows, int64_t filters, const int32_t* keys, const int32_t* least,
                     int64_t step, float* code);

  // Adds du = g * sign(u), and du * u, to a total per filter; sign(0) is 0.
  void (*code_sums)(int64_t rows, int64_t filters, int64_t step, const float* w, const float* mean,
                    const float* deviation, const float* g, double* sums, double* by_u);

  // dw = (du - shift - slant * u) / deviation
  void (*code_back)(int64_t rows, int64_t filters, int64_t step, const float* w, const float* mean,
                    const float* deviation, const float* shift, const float* slant, const float* g,
                    float* dw);

  // du = da * (the estimator at u = (x - mean) * scale), in place. Gives the sums of du and du * u.
  void (*estimate)(int64_t length, Estimator estimator, const float* x, float mean, float scale,
                   float* da, double* sums);

  // dx = scale * (du - shift - slant * u) + more, u as before; more may be null.
  void (*standardize_back)(int64_t length, const float* x, float mean, float scale, float shift,
                           float slant, const float* du, const float* more, float* dx);
};

}  // namespace siman

#endif  // SIMAN_TRAINING_H_
