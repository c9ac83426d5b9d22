// The inner loops of training that each instruction set implements, chosen at run time.
//
// Gradients of a binary convolution are sums of floats times +-1. Four floats have only sixteen
// signed sums, which are stored in a table; the four bits are the index of their sum. So one
// addition replaces four multiply-adds.

#ifndef SIMAN_TRAINING_H_
#define SIMAN_TRAINING_H_

#include <cstdint>

namespace siman {

constexpr int64_t kFour = 4;           // floats in one table
constexpr int64_t kSums = 16;          // their signed sums
constexpr int64_t kTableFilters = 16;  // filters in a table of the kernel's gradient
constexpr int64_t kFloatsOfTable = kSums * kTableFilters;
constexpr int64_t kMostRows = 3;       // rows of taps in one call of add_rows
constexpr int64_t kMostTaps = 16;      // taps in one call of add_pixels
constexpr int64_t kFoursOfPlaces = 8;  // fours whose indices fit in 32 bits together
constexpr uint8_t kBit = 8;            // value of a bit in the bytes that become indices
constexpr float kLeastSlope = 1e-3f;   // below, a PReLU's input is not computed from its result
constexpr int64_t kEight = 8;          // channels whose bits are one byte

// A row of counts for a byte has one for each half and each of the sixteen halves of a kernel's
// byte. Rows are told by where they begin. The last one is for padding, which is neither +1 nor -1.
constexpr int64_t kCountsOfEight = 2 * kSums;
constexpr uint16_t kNoEight = 256 * kCountsOfEight;

enum class Activation : int64_t { kNone, kPRelu, kHardTanh };

// Estimates of the derivative of a sign at u.
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

// Inputs y of a norm: floats, or sums of +-1.
struct Numbers {
  const float* floats;  // null for sums
  const int16_t* sums;
};

// Arrays are [pixels, channels] of any size unless stated otherwise.
struct Training {
  int64_t width;     // floats in a vector
  int64_t together;  // channels that look_up handles together; kLanes is a multiple of it

  double (*sum)(int64_t length, const float* x);

  // Sum of (x - mean)^2.
  double (*squares)(int64_t length, const float* x, float mean);

  // bytes = kBit where x >= least, else 0.
  void (*to_bytes)(int64_t length, const float* x, float least, uint8_t* bytes);

  // For each of the fours, and each channel, a multiple of kLanes: a + 2 b + 4 c + 8 d, of pixels
  // that are `step` bytes apart. Blocks of `together` channels are `block` bytes apart in the
  // result, fours of a block `together`.
  void (*join_bytes)(int64_t fours, int64_t channels, const uint8_t* pixels, int64_t step,
                     uint8_t* to, int64_t block);

  // places[i] = where the row of counts for eight numbers begins, whose bits are x >= least. The
  // length is a multiple of kEight. Null if multiply_eights is.
  void (*eights)(int64_t length, const float* x, float least, uint16_t* places);

  // y[p][f] = the product of filter f and the image around pixel p: the channels of all values,
  // less twice the counts of filter f at places[p * step + offsets[value]], for one or two blocks
  // of kTableFilters filters. Kernels are [values, blocks, 2, kTableFilters], the halves of bytes.
  // Null if a register cannot look up bytes.
  void (*multiply_eights)(int64_t values, const int32_t* offsets, int64_t pixels, int64_t step,
                          const uint16_t* places, int64_t blocks, const uint8_t* kernel,
                          int64_t y_step, int16_t* y);

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

  // Likewise, from the norm's results instead of the shortcut: z has their sign, and is what a
  // PReLU's slope made of them. So there is no hard tanh, and slopes are at least kLeastSlope.
  void (*norm_sums_after)(int64_t pixels, int64_t channels, const BatchNorm& norm,
                          const float* dout, Numbers y, const float* out, float* totals);

  // Computes dy, and dz unless it is null. Pixels of dout, y, the shortcut and dz are `step`
  // numbers apart, those of dy `dy_step`.
  void (*norm_gradient)(int64_t pixels, int64_t channels, const BatchNorm& norm,
                        const BatchNormGradient& gradient, int64_t step, const float* dout,
                        Numbers y, const float* shortcut, int64_t dy_step, float* dy, float* dz);

  // Computes tables of the kernel's gradient, [fours, kSums, kTableFilters]: entry b is the sum of
  // (bit i of b ? +1 : -1) * g[4 * four + i]. Rows of g are `stride` apart.
  void (*filter_tables)(int64_t fours, const float* g, int64_t stride, float* tables);

  // sums[c] = (fresh ? 0 : sums[c]) + the sum over fours of the table's row whose index is the byte
  // of the four and of channel c, as `join_bytes` writes them, in units of kBit. Sums are
  // [channels, kTableFilters].
  void (*look_up)(int64_t fours, const float* tables, const uint8_t* places, int64_t block,
                  int64_t channels, bool fresh, float* sums);

  // gradient = scale * (outside + the sum over blocks of sums), kTableFilters numbers. Sums of two
  // blocks are `step` apart.
  void (*combine)(int64_t blocks, int64_t step, const float* sums, const double* outside,
                  const float* scale, float* gradient);

  // Computes tables of the input's gradient, [fours, kSums, lanes], from rows [4 * fours, lanes].
  void (*row_tables)(int64_t fours, int64_t lanes, const float* rows, float* tables);

  // sums[c] = (fresh ? 0 : sums[c]) + the sum over taps and terms of
  // tables[tap][places[c * places_step + term * term_step + tap] + lane], for `lanes` lanes in
  // whole vectors and up to kMostRows taps.
  void (*add_rows)(int64_t lanes, int64_t channels, int64_t taps, const float* const* tables,
                   int64_t terms, int64_t term_step, const uint16_t* places, int64_t places_step,
                   bool fresh, float* sums, int64_t sums_step);

  // Computes tables [pixels, to_step], those of a pixel [fours, kSums]: entry b is the sum of
  // (bit i of b ? +1 : -1) * g[pixel][4 * four + i] * scale[4 * four + i]. The number of fours is a
  // multiple of 4. Null if add_pixels is.
  void (*pixel_tables)(int64_t pixels, int64_t fours, const float* g, int64_t g_step,
                       const float* scale, float* to, int64_t to_step);

  // sums[pixel][c] = (fresh ? 0 : sums[pixel][c]) + the sum over taps and fours of the entry of
  // tables[tap][pixel][four] at its four bits of places[tap][c]. The number of channels is a
  // multiple of kSums. Null if a register cannot hold such a table.
  void (*add_pixels)(int64_t pixels, int64_t channels, int64_t taps, const float* const* tables,
                     int64_t table_step, int64_t fours, const uint32_t* const* places, bool fresh,
                     float* sums, int64_t sums_step);

  // to[c][pixel] = from[pixel][c] * scale[c]; a null scale means 1. Steps are in floats. The
  // inverse is the same with pixels and channels exchanged.
  void (*to_rows)(int64_t pixels, int64_t channels, const float* from, int64_t from_step,
                  const float* scale, float* to, int64_t to_step);

  // to[pixel][c] = the sum over i of from[i][c * from_step + pixel] where masks[i][pixel] is -1; it
  // is 0 elsewhere. Whole vectors are read.
  void (*join_rows)(int64_t pixels, int64_t channels, int64_t count, const float* const* from,
                    const int32_t* const* masks, int64_t from_step, float* to, int64_t to_step);

  // sums[value][filter] += sum over pixels of x[pixel * x_step + value] * g[pixel * filters +
  // filter], filters a multiple of kLanes.
  void (*add_products)(int64_t pixels, int64_t values, int64_t x_step, const float* x,
                       int64_t filters, const float* g, float* sums);

  // y[c] = the largest of count pixels, and which[c] its place, the first one if several are equal.
  // NaN counts as larger than any number.
  void (*max_of)(int64_t channels, int64_t count, const float* const* pixels, const uint8_t* places,
                 float* y, uint8_t* which);

  // dx[c] = the sum of g[i][c] over all i with which[i][c] equal to places[i].
  void (*add_chosen)(int64_t channels, int64_t count, const float* const* g,
                     const uint8_t* const* which, const uint8_t* places, float* dx);

  // Counts the keys below `least`.
  int64_t (*count_below)(int64_t length, const int32_t* keys, int32_t least);

  // Finds the ranks[lane]-th smallest of each of kLanes columns; 0 for rank -1. Keys are
  // [rows, kLanes] and not negative.
  void (*kth_of_columns)(int64_t rows, const int32_t* keys, const int32_t* ranks, int32_t* found);

  // From here to code_back: latent kernels, as rows of `filters` weights, `step` numbers apart,
  // with u = (w - mean) / deviation.

  // keys = the bits of |u|, or of |w - mean| if the deviation is null. Rows of keys are `keys_step`
  // numbers apart.
  void (*magnitudes)(int64_t rows, int64_t filters, int64_t step, const float* w, const float* mean,
                     const float* deviation, int64_t keys_step, int32_t* keys);

  // w - mean, with magnitudes clipped to [low, high]; rows are contiguous.
  void (*clip)(int64_t rows, int64_t filters, const float* w, const float* mean, float low,
               float high, float* clipped);

  // Adds w, or (w - mean)^2 if the mean is not null, to a total per filter.
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

  // du = da * (the estimator at u = (x - mean) * scale), in place. Returns the sums of du and du *
  // u.
  void (*estimate)(int64_t length, Estimator estimator, const float* x, float mean, float scale,
                   float* da, double* sums);

  // dx = scale * (du - shift - slant * u) + more, with the same u; more may be null.
  void (*standardize_back)(int64_t length, const float* x, float mean, float scale, float shift,
                           float slant, const float* du, const float* more, float* dx);
};

}  // namespace siman

#endif  // SIMAN_TRAINING_H_
