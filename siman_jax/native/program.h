// A network as a checked list of operations; `siman.h` says what each of them computes.

#ifndef SIMAN_PROGRAM_H_
#define SIMAN_PROGRAM_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "convolution.h"
#include "siman.h"

namespace siman {

enum class Kind {
  kImages,
  kConstant,
  kConv,
  kBinaryConv,
  kDense,
  kBinaryDense,
  kMaxPool,
  kSumPool,
  kSum,
  kMax,
  kAffine,
  kPRelu,
  kClip,
  kSigmoid,
  kTanh,
  kSoftmax,
  kSigns,
  kAdd,
  kMultiply,
  kConcatenate,
  kPad,
  kSlice,
  kReshape,
  kTranspose,
  kBroadcast,
};

struct KindInfo {
  const char* name;
  Kind kind;
  int64_t inputs;   // -1: one or more
  int64_t numbers;  // -1: as many as the shapes ask for
  int64_t weights;
};

constexpr KindInfo kKinds[] = {
    {"images", Kind::kImages, 0, 3, 0},
    {"constant", Kind::kConstant, 0, 0, 1},
    {"conv", Kind::kConv, 1, 9, 1},
    {"binary_conv", Kind::kBinaryConv, 1, 6, 1},
    {"dense", Kind::kDense, 1, 0, 1},
    {"binary_dense", Kind::kBinaryDense, 1, 0, 1},
    {"max_pool", Kind::kMaxPool, 1, 8, 0},
    {"sum_pool", Kind::kSumPool, 1, 8, 0},
    {"sum", Kind::kSum, 1, -1, 0},
    {"max", Kind::kMax, 1, -1, 0},
    {"affine", Kind::kAffine, 1, 0, 2},
    {"prelu", Kind::kPRelu, 1, 0, 1},
    {"clip", Kind::kClip, 1, 0, 1},
    {"sigmoid", Kind::kSigmoid, 1, 0, 0},
    {"tanh", Kind::kTanh, 1, 0, 0},
    {"softmax", Kind::kSoftmax, 1, 0, 0},
    {"signs", Kind::kSigns, 1, 0, 1},
    {"add", Kind::kAdd, 2, 0, 0},
    {"multiply", Kind::kMultiply, 2, 0, 0},
    {"concatenate", Kind::kConcatenate, -1, 1, 0},
    {"pad", Kind::kPad, 1, -1, 1},
    {"slice", Kind::kSlice, 1, -1, 0},
    {"reshape", Kind::kReshape, 1, -1, 0},
    {"transpose", Kind::kTranspose, 1, -1, 0},
    {"broadcast", Kind::kBroadcast, 1, -1, 0},
};

using Sizes = std::vector<int64_t>;

// Weights of an operation; one of the two lists is empty, or both if it is absent.
struct Tensor {
  bool present = false;
  Sizes sizes;
  std::vector<float> floats;
  std::vector<uint32_t> words;
};

struct Operation {
  Kind kind;
  const char* name;
  Sizes inputs, numbers;
  std::vector<Tensor> weights;
  Sizes sizes;  // of the result
};

struct Program {
  std::vector<Operation> operations;
  int64_t result;
};

// A window that moves over [height, width, channels], by the numbers of a convolution or pool.
struct Window {
  int64_t down, across, stride_down, stride_across, top, bottom, left, right, dilation_down,
      dilation_across;

  // From the first to the last tap.
  int64_t span_down() const { return (down - 1) * dilation_down + 1; }
  int64_t span_across() const { return (across - 1) * dilation_across + 1; }
  int64_t rows(int64_t height) const {
    return (height + top + bottom - span_down()) / stride_down + 1;
  }
  int64_t columns(int64_t width) const {
    return (width + left + right - span_across()) / stride_across + 1;
  }
};

inline bool IsPool(Kind kind) { return kind == Kind::kMaxPool || kind == Kind::kSumPool; }

inline Window WindowOf(const Operation& own) {
  const Sizes& n = own.numbers;
  if (IsPool(own.kind)) return {n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], 1, 1};
  const Sizes& kernel = own.weights[0].sizes;
  const bool dilated = own.kind == Kind::kConv;
  return {kernel[0],          kernel[1],         n[0], n[1], n[2], n[3], n[4], n[5],
          dilated ? n[6] : 1, dilated ? n[7] : 1};
}

// Reads operations one after another and checks each. These checks are the only ones: what the
// program computes afterwards relies on them.
class ProgramReader {
 public:
  static Program Read(int64_t count, const siman_operation* operations, int64_t result) {
    ProgramReader reader;
    Expect(count >= 1 && count <= kMostOperations && operations != nullptr,
           "from 1 to 65536 operations");
    for (int64_t place = 0; place < count; ++place) {
      try {
        reader.Add(operations[place]);
      } catch (const std::invalid_argument& error) {
        const bool known = reader.name_ != nullptr;
        throw std::invalid_argument("operation " + std::to_string(place) +
                                    (known ? std::string(" (") + reader.name_ + ")" : "") +
                                    ": expected " + error.what());
      }
    }
    Expect(result >= 0 && result < count, "a result that is one of the operations");
    reader.program_.result = result;
    return std::move(reader.program_);
  }

 private:
  static constexpr int64_t kMostOperations = 1 << 16, kMostAxes = 8, kMostInputs = 1 << 12;
  static constexpr int64_t kMostNumbers = int64_t{1} << 31;  // of a result, of padding included
  static constexpr int64_t kMostTerms = int64_t{1} << 24;    // whole numbers that float32 holds

  static void Expect(bool holds, const char* expected) {
    if (!holds) throw std::invalid_argument(expected);
  }

  // The number of entries, which is limited so that no product of sizes can overflow.
  static int64_t Count(const Sizes& sizes) {
    int64_t count = 1;
    Expect(static_cast<int64_t>(sizes.size()) <= kMostAxes, "at most 8 axes");
    for (const int64_t size : sizes) {
      Expect(size >= 1 && size <= kMostNumbers / count, "sizes from 1, of at most 2^31 numbers");
      count *= size;
    }
    return count;
  }

  void Add(const siman_operation& given) {
    name_ = nullptr;
    Expect(given.kind != nullptr, "a kind");
    const KindInfo* info =
        std::find_if(std::begin(kKinds), std::end(kKinds),
                     [&](const KindInfo& each) { return std::strcmp(each.name, given.kind) == 0; });
    Expect(info != std::end(kKinds), "one of the kinds of siman.h");
    name_ = info->name;
    Operation own{info->kind, info->name, {}, {}, {}, {}};
    Expect((own.kind == Kind::kImages) == program_.operations.empty(),
           "the images as the first operation, and only there");
    const int64_t inputs = given.input_count;
    Expect(info->inputs >= 0 ? inputs == info->inputs : inputs >= 1 && inputs <= kMostInputs,
           "another number of operands");
    own.inputs = List(given.inputs, inputs);
    for (const int64_t input : own.inputs)
      Expect(input >= 0 && input < static_cast<int64_t>(program_.operations.size()),
             "operands that are before it");
    Expect(info->numbers >= 0 ? given.number_count == info->numbers
                              : given.number_count >= 0 && given.number_count <= 3 * kMostAxes,
           "another number of integers");
    own.numbers = List(given.numbers, given.number_count);
    Expect(given.weight_count == info->weights && (info->weights == 0 || given.weights != nullptr),
           "another number of weights");
    const bool words = own.kind == Kind::kBinaryConv || own.kind == Kind::kBinaryDense;
    const bool optional = own.kind == Kind::kAffine || own.kind == Kind::kSigns;
    for (int64_t i = 0; i < info->weights; ++i)
      own.weights.push_back(Read(given.weights[i], words, optional));
    own.sizes = Result(own);
    const int64_t count = Count(own.sizes);
    const int64_t channels = own.sizes.empty() ? 1 : own.sizes.back();
    Expect(count / channels * RoundUp(channels, kLanes) <= kMostNumbers,
           "a result of at most 2^31 numbers");
    program_.operations.push_back(std::move(own));
  }

  static Sizes List(const int64_t* numbers, int64_t count) {
    Expect(count == 0 || numbers != nullptr, "numbers that are not null");
    return {numbers, numbers + count};
  }

  static Tensor Read(const siman_array& given, bool words, bool optional) {
    Tensor tensor;
    if (given.data == nullptr) {
      Expect(optional, "weights that are not absent");
      return tensor;
    }
    Expect(given.type == (words ? SIMAN_UINT32 : SIMAN_FLOAT32),
           words ? "weights of uint32" : "weights of float32");
    Expect(given.rank >= 0 && given.rank <= kMostAxes, "weights with at most 8 axes");
    tensor.present = true;
    tensor.sizes = List(given.sizes, given.rank);
    const int64_t count = Count(tensor.sizes);
    if (words) {
      const auto* data = static_cast<const uint32_t*>(given.data);
      tensor.words.assign(data, data + count);
    } else {
      const auto* data = static_cast<const float*>(given.data);
      tensor.floats.assign(data, data + count);
    }
    return tensor;
  }

  const Sizes& Of(int64_t place) const { return program_.operations[place].sizes; }

  static Sizes Without(const Sizes& sizes, const Sizes& axes) {
    Sizes left;
    for (size_t axis = 0; axis < sizes.size(); ++axis)
      if (!std::count(axes.begin(), axes.end(), axis)) left.push_back(sizes[axis]);
    return left;
  }

  static void CheckChannels(const Tensor& weight, const Sizes& x) {
    if (weight.present)
      Expect(!x.empty() && weight.sizes == Sizes{x.back()}, "weights with a number per channel");
  }

  static void CheckWords(const Operation& own, const Sizes& x, int64_t taps, int64_t words) {
    Expect(words == (x.back() + kWordBits - 1) / kWordBits, "words for the operand's channels");
    Expect(taps * x.back() <= kMostTerms, "sums of at most 2^24 terms");
    // The bits beyond the last channel would be counted.
    const Tensor& weight = own.weights[0];
    const int64_t out = weight.sizes.back(), over = x.back() % kWordBits;
    if (over == 0) return;
    const uint32_t beyond = ~((uint32_t{1} << over) - 1);
    for (int64_t row = words - 1; row < taps * words; row += words)
      for (int64_t o = 0; o < out; ++o)
        Expect((weight.words[row * out + o] & beyond) == 0, "no bits beyond the last channel");
  }

  // Places of a window, down and across.
  static Sizes Places(const Operation& own, const Sizes& x) {
    constexpr int64_t kMost = 1 << 20;
    const Window n = WindowOf(own);
    for (const int64_t number :
         {n.down, n.across, n.stride_down, n.stride_across, n.dilation_down, n.dilation_across})
      Expect(number >= 1 && number <= kMost, "windows, strides and dilation from 1 to 2^20");
    for (const int64_t number : {n.top, n.bottom, n.left, n.right})
      Expect(number >= 0 && number <= kMost, "padding from 0 to 2^20");
    const int64_t height = x[0] + n.top + n.bottom, width = x[1] + n.left + n.right;
    Expect(n.span_down() <= height && n.span_across() <= width,
           "a window that fits into the padded image");
    Expect(width <= kMostNumbers / height && RoundUp(x[2], kLanes) <= kMostNumbers / height / width,
           "a padded image of at most 2^31 numbers");
    return {n.rows(x[0]), n.columns(x[1])};
  }

  Sizes Result(const Operation& own) const {
    const Sizes none, &n = own.numbers, &x = own.inputs.empty() ? none : Of(own.inputs[0]);
    const auto axes = static_cast<int64_t>(x.size());
    const auto numbers = static_cast<int64_t>(n.size());
    switch (own.kind) {
      case Kind::kImages: return n;
      case Kind::kConstant: return own.weights[0].sizes;
      case Kind::kConv:
      case Kind::kBinaryConv: {
        const Sizes& kernel = own.weights[0].sizes;
        Expect(axes == 3 && kernel.size() == 4, "a kernel with 4 axes, and an operand with 3");
        if (own.kind == Kind::kConv) {
          const int64_t groups = n[8];
          Expect(groups >= 1 && x[2] % groups == 0 && kernel[2] == x[2] / groups &&
                     kernel[3] % groups == 0,
                 "a kernel for the operand's channels, and whole groups of them");
        } else {
          CheckWords(own, x, kernel[0] * kernel[1], kernel[2]);
        }
        const Sizes places = Places(own, x);
        return {places[0], places[1], kernel[3]};
      }
      case Kind::kDense:
      case Kind::kBinaryDense: {
        const Sizes& kernel = own.weights[0].sizes;
        Expect(axes >= 1 && kernel.size() == 2, "a matrix, and an operand with an axis");
        if (own.kind == Kind::kDense) {
          Expect(kernel[0] == x.back(), "a row for each of the operand's channels");
        } else {
          Expect(axes == 1, "an operand with one axis");
          CheckWords(own, x, 1, kernel[0]);
        }
        Sizes sizes = x;
        sizes.back() = kernel[1];
        return sizes;
      }
      case Kind::kMaxPool:
      case Kind::kSumPool: {
        Expect(axes == 3, "an operand with 3 axes");
        const Sizes places = Places(own, x);
        const Window w = WindowOf(own);
        Expect(std::max(w.top, w.bottom) < w.down && std::max(w.left, w.right) < w.across,
               "padding smaller than the window");
        return {places[0], places[1], x[2]};
      }
      case Kind::kSum:
      case Kind::kMax:
        Expect(numbers >= 1, "an axis");
        for (int64_t i = 0; i < numbers; ++i)
          Expect(n[i] >= 0 && n[i] < axes && (i == 0 || n[i] > n[i - 1]),
                 "axes of the operand, in order");
        return Without(x, n);
      case Kind::kAffine:
      case Kind::kPRelu:
      case Kind::kSigns:
        for (const Tensor& weight : own.weights) CheckChannels(weight, x);
        return x;
      case Kind::kClip: {
        const Tensor& limits = own.weights[0];
        Expect(limits.sizes == Sizes{2} && limits.floats[0] <= limits.floats[1],
               "a low and a high limit");
        return x;
      }
      case Kind::kSoftmax: Expect(axes >= 1, "an operand with an axis"); return x;
      case Kind::kSigmoid:
      case Kind::kTanh: return x;
      case Kind::kAdd:
      case Kind::kMultiply: {
        const Sizes& y = Of(own.inputs[1]);
        Expect(x.size() == y.size(), "operands of equally many axes");
        Sizes sizes;
        for (size_t axis = 0; axis < x.size(); ++axis) {
          Expect(x[axis] == y[axis] || x[axis] == 1 || y[axis] == 1,
                 "operands of equal sizes, or 1");
          sizes.push_back(std::max(x[axis], y[axis]));
        }
        return sizes;
      }
      case Kind::kConcatenate: {
        Expect(n[0] >= 0 && n[0] < axes, "an axis of the operands");
        Sizes sizes = x;
        for (size_t i = 1; i < own.inputs.size(); ++i) {
          const Sizes& part = Of(own.inputs[i]);
          Expect(part.size() == x.size() && Without(part, n) == Without(x, n),
                 "operands that differ only along the axis");
          sizes[n[0]] += part[n[0]];
        }
        return sizes;
      }
      case Kind::kPad: {
        Expect(numbers == 2 * axes, "padding before and after each axis");
        Expect(own.weights[0].sizes == Sizes{1}, "a value of padding");
        Sizes sizes;
        for (int64_t axis = 0; axis < axes; ++axis) {
          const int64_t before = n[axis], after = n[axes + axis];
          Expect(std::min(before, after) >= 0 && std::max(before, after) <= kMostNumbers,
                 "padding from 0 to 2^31");
          sizes.push_back(before + x[axis] + after);
        }
        return sizes;
      }
      case Kind::kSlice: {
        Expect(numbers == 3 * axes, "start, stop and stride for each axis");
        Sizes sizes;
        for (int64_t axis = 0; axis < axes; ++axis) {
          const int64_t start = n[axis], stop = n[axes + axis], stride = n[2 * axes + axis];
          Expect(start >= 0 && start < stop && stop <= x[axis] && stride >= 1 &&
                     stride <= kMostNumbers,
                 "a range of each axis, and a stride from 1");
          sizes.push_back((stop - start + stride - 1) / stride);
        }
        return sizes;
      }
      case Kind::kReshape: Expect(Count(n) == Count(x), "a shape for as many numbers"); return n;
      case Kind::kTranspose: {
        Sizes sorted = n, sizes;
        std::sort(sorted.begin(), sorted.end());
        Expect(numbers == axes, "each axis once");
        for (int64_t axis = 0; axis < axes; ++axis) {
          Expect(sorted[axis] == axis, "each axis once");
          sizes.push_back(x[n[axis]]);
        }
        return sizes;
      }
      case Kind::kBroadcast:
        Expect(numbers == axes, "a size for each axis");
        for (int64_t axis = 0; axis < axes; ++axis)
          Expect(x[axis] == n[axis] || x[axis] == 1,
                 "sizes of the operand, or more where it has 1");
        return n;
    }
    throw std::invalid_argument("a known kind");
  }

  const char* name_ = nullptr;
  Program program_;
};

}  // namespace siman

#endif  // SIMAN_PROGRAM_H_
