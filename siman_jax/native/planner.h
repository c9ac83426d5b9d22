// Makes the plan of a network from its operations.

#ifndef SIMAN_PLANNER_H_
#define SIMAN_PLANNER_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "binary_product.h"
#include "epilogue.h"
#include "plain.h"
#include "plan.h"
#include "pooled_stem.h"
#include "program.h"
#include "real_product.h"
#include "tasks.h"
#include "variant.h"

namespace siman {

// Operations that are computed together are a chain: a head, such as a convolution, and the
// operations on single numbers that follow it and whose operands nothing else needs. A chain is
// computed at the place of its last operation, since only there all operands are known to be.
//
// Signs that only binary products take need no step of their own: the products pack them as bits.
class Planner {
 public:
  static std::unique_ptr<const Plan> Make(const Variant& variant, const Program& program) {
    auto plan = std::make_unique<Plan>();
    plan->variant = &variant;
    Planner planner(program, *plan);
    planner.FindUsers();
    planner.FindChains();
    planner.PlanSteps();
    plan->PlaceBuffers();
    // Weights that the nearest cache does not keep from one image to the next are read once for
    // several images, as long as their memory is small.
    if (planner.weights_ > kKept)
      plan->together = std::clamp<int64_t>(kMostMemory / std::max<int64_t>(1, plan->memory), 1,
                                           Plan::kMostTogether);
    return plan;
  }

 private:
  struct Chain {
    std::vector<int64_t> operations;  // the head first
    int64_t stem = -1;  // of maxima: the chain of a convolution computed together with them
    int64_t step = -1;  // where it is computed
    int64_t last() const { return operations.back(); }
  };

  static constexpr int64_t kKept = 1 << 16, kMostMemory = 1 << 19;  // floats

  Planner(const Program& program, Plan& plan)
      : program_(program), plan_(plan), run_(*plan.variant) {
    const size_t count = program.operations.size();
    users_.resize(count);
    chain_of_.assign(count, -1);
    needs_mean_.assign(count, false);
    for (const Operation& own : program.operations) {
      values_.emplace_back(own.sizes);
      for (const Tensor& weight : own.weights)
        weights_ += static_cast<int64_t>(weight.floats.size() + weight.words.size());
    }
    values_[0].lanes = values_[0].channels;
    plan.image_size = values_[0].count();
    plan.result_size = values_[program.result].count();
  }

  const Operation& Of(int64_t place) const { return program_.operations[place]; }

  static bool IsBinary(Kind kind) {
    return kind == Kind::kBinaryConv || kind == Kind::kBinaryDense;
  }
  bool TakesSigns(int64_t place) const {
    return IsBinary(Of(place).kind) && Of(Of(place).inputs[0]).kind == Kind::kSigns;
  }

  // The operands that an operation reads: for a product of signs, what they are the signs of.
  Sizes Operands(int64_t place) const {
    if (TakesSigns(place)) return {Of(Of(place).inputs[0]).inputs[0]};
    return Of(place).inputs;
  }

  void FindUsers() {
    const auto count = static_cast<int64_t>(program_.operations.size());
    std::vector<char> needed(count);
    needed[program_.result] = true;
    for (int64_t place = count; place-- > 0;) {
      if (!needed[place]) continue;
      for (const int64_t operand : Operands(place)) {
        needed[operand] = true;
        users_[operand].push_back(place);
      }
      const int64_t signs = IsBinary(Of(place).kind) ? Of(place).inputs[0] : place;
      if (Of(signs).kind == Kind::kSigns && !Of(signs).weights[0].present)
        needs_mean_[Of(signs).inputs[0]] = true;
    }
    needed_ = std::move(needed);
  }

  // Whether an operation can be computed as a part of what is before it.
  bool IsElementwise(int64_t place) const {
    const Operation& own = Of(place);
    if (own.kind == Kind::kAdd)
      return Of(own.inputs[0]).sizes == own.sizes && Of(own.inputs[1]).sizes == own.sizes;
    return (own.kind == Kind::kAffine || own.kind == Kind::kPRelu || own.kind == Kind::kClip) &&
           !own.sizes.empty();
  }

  bool IsHead(int64_t place) const {
    const Kind kind = Of(place).kind;
    return IsBinary(kind) || kind == Kind::kConv || kind == Kind::kDense || IsPool(kind);
  }

  // Products of bits choose first, so that an addition of two products is fused into theirs.
  void FindChains() {
    const auto count = static_cast<int64_t>(program_.operations.size());
    for (int64_t place = 0; place < count; ++place)
      if (needed_[place] && TakesSigns(place)) MakeChain(place);
    for (int64_t place = 0; place < count; ++place)
      if (needed_[place] && chain_of_[place] < 0 && (IsHead(place) || IsElementwise(place)))
        MakeChain(place);
  }

  void MakeChain(int64_t head) {
    Chain chain{{head}};
    Epilogue epilogue(values_[head].channels);
    if (!IsHead(head)) epilogue.Take(Of(head));
    for (int64_t place = head; place != program_.result && users_[place].size() == 1;) {
      const int64_t next = users_[place][0];
      if (chain_of_[next] >= 0 || !IsElementwise(next) || !epilogue.Take(Of(next))) break;
      chain.operations.push_back(next);
      place = next;
    }
    for (const int64_t place : chain.operations)
      chain_of_[place] = static_cast<int64_t>(chains_.size());
    chain.step = chain.last();
    if (IsPool(Of(head).kind)) JoinStem(chain);
    chains_.push_back(std::move(chain));
  }

  // Joins the chain of a convolution to that of its maxima if they can be one step.
  void JoinStem(Chain& chain) {
    const int64_t head = chain.operations[0], before = Of(head).inputs[0];
    const int64_t own = chain_of_[before];
    if (own < 0 || before == program_.result || users_[before].size() != 1) return;
    Chain& stem = chains_[own];
    const int64_t conv = stem.operations[0];
    if (stem.last() != before || !PooledStem::Fits(Of(conv), Of(head))) return;
    const Value& x = values_[Of(conv).inputs[0]];
    Epilogue inner(values_[conv].channels);
    for (const int64_t place : stem.operations)
      if (place != conv) inner.Take(Of(place));
    if (x.lanes != x.channels || !inner.is_norm()) return;
    chain.stem = own;
    stem.step = chain.step;
  }

  void PlanSteps() {
    const auto count = static_cast<int64_t>(program_.operations.size());
    for (int64_t place = 0; place < count; ++place) {
      if (!needed_[place]) continue;
      if (chain_of_[place] < 0) {
        PlanPlain(place);
      } else if (const Chain& chain = chains_[chain_of_[place]]; chain.step == place) {
        PlanChain(chain);
      }
      ++step_;
    }
    const Value result = values_[program_.result];
    Read(result);
    AddStage(1, [result](const Frame& frame, int64_t, int64_t) {
      const float* x = frame.at(result.place);
      for (int64_t pixel = 0; pixel < result.pixels; ++pixel, x += result.lanes)
        std::copy_n(x, result.channels, frame.result + pixel * result.channels);
    });
  }

  // Memory ------------------------------------------------------------------------------------

  Buffer* NewBuffer(int64_t size) {
    plan_.buffers.push_back({RoundUp(size, kLanes), step_, step_});
    return &plan_.buffers.back();
  }

  // Marks that the current step reads a value.
  void Read(const Value& value) {
    if (value.place.buffer != nullptr) value.place.buffer->last = step_;
  }

  // Gives memory to the result of the current step. If `over` may be overwritten, and nothing
  // else needs it afterwards, its memory is taken.
  Buffer* Write(int64_t place, const Value* over = nullptr) {
    Value& own = values_[place];
    Buffer* buffer = nullptr;
    if (over != nullptr && CanOverwrite(*over, place)) buffer = over->place.buffer;
    if (buffer == nullptr) buffer = NewBuffer(own.memory());
    own.place = {buffer, nullptr};
    Hold(buffer, place);
    return buffer;
  }

  bool CanOverwrite(const Value& old, int64_t place) const {
    return old.place.buffer != nullptr && old.memory() == values_[place].memory() &&
           last_users_.at(old.place.buffer) <= place;
  }

  // Notes that a buffer holds the result of an operation until the last step that reads it.
  void Hold(Buffer* buffer, int64_t place) {
    int64_t& last = last_users_.try_emplace(buffer, -1).first->second;
    if (place == program_.result) last = static_cast<int64_t>(values_.size());
    for (const int64_t user : users_[place])
      last = std::max(last, chain_of_[user] < 0 ? user : chains_[chain_of_[user]].step);
  }

  void NeedScratch(int64_t size) { plan_.scratch = std::max(plan_.scratch, RoundUp(size, kLanes)); }

  template <typename Run>
  void AddStage(int64_t tasks, Run run, bool joined = true) {
    plan_.stages.push_back({tasks, std::move(run), joined});
  }

  // A value with channels in whole lanes; the images are copied once.
  const Value& InLanes(int64_t place) {
    const Value& own = values_[place];
    if (own.lanes % kLanes == 0) return own;
    if (images_in_lanes_ != nullptr) return *images_in_lanes_;
    images_in_lanes_ = std::make_unique<Value>(own.sizes);
    Buffer* to = NewBuffer(images_in_lanes_->memory());
    images_in_lanes_->place = {to, nullptr};
    Hold(to, place);
    AddStage(own.pixels, [to, channels = own.channels, lanes = images_in_lanes_->lanes](
                             const Frame& frame, int64_t begin, int64_t end) {
      const float* x = frame.image + begin * channels;
      float* y = frame.at(to) + begin * lanes;
      for (int64_t pixel = begin; pixel < end; ++pixel, x += channels, y += lanes)
        std::copy_n(x, channels, y);
    });
    return *images_in_lanes_;
  }

  // Chains ------------------------------------------------------------------------------------

  Epilogue EpilogueOf(const Chain& chain) {
    Epilogue epilogue(values_[chain.operations[0]].channels);
    for (size_t i = IsHead(chain.operations[0]) ? 1 : 0; i < chain.operations.size(); ++i) {
      const int64_t place = chain.operations[i];
      epilogue.Take(Of(place));
      if (Of(place).kind == Kind::kAdd) {
        const Sizes& inputs = Of(place).inputs;
        const bool second = i == 0 || inputs[0] == chain.operations[i - 1];
        const Value& more = InLanes(inputs[second ? 1 : 0]);
        Read(more);
        epilogue.SetMore(more.place);
      }
    }
    return epilogue;
  }

  // What a chain adds; null if nothing.
  const Value* MoreOf(const Chain& chain) const {
    for (size_t i = 0; i < chain.operations.size(); ++i) {
      const Operation& own = Of(chain.operations[i]);
      if (own.kind != Kind::kAdd) continue;
      const bool second = i == 0 || own.inputs[0] == chain.operations[i - 1];
      return &values_[own.inputs[second ? 1 : 0]];
    }
    return nullptr;
  }

  void PlanChain(const Chain& chain) {
    const int64_t head = chain.operations[0];
    if (TakesSigns(head))
      PlanBinary(chain);
    else if (IsPool(Of(head).kind))
      PlanPool(chain);
    else if (IsHead(head))
      PlanReal(chain);
    else
      PlanElementwise(chain);
  }

  // A value with a height and a width, and the window of a convolution, for all kinds of products.
  static Value AsImage(const Value& value) {
    if (value.sizes.size() == 3) return value;
    Value image = value;
    image.sizes = {1, value.pixels, value.channels};
    return image;
  }
  Window WindowOfProduct(const Operation& own) const {
    if (own.kind == Kind::kConv || own.kind == Kind::kBinaryConv) return WindowOf(own);
    return {1, 1, 1, 1, 0, 0, 0, 0, 1, 1};
  }

  void PlanBinary(const Chain& chain) {
    const int64_t head = chain.operations[0], place = chain.last();
    const Operation &own = Of(head), &signs = Of(own.inputs[0]);
    const int64_t operand = signs.inputs[0];
    const Value x = InLanes(operand);
    Read(x);
    Epilogue epilogue = EpilogueOf(chain);
    const Value* more = MoreOf(chain);
    Buffer* y = Write(place, more);
    auto product = std::make_shared<BinaryProduct>(
        run_, AsImage(x), AsImage(values_[place]), WindowOfProduct(own), own.weights[0],
        Threshold(signs.weights[0]), std::move(epilogue));
    if (product->threshold().centred) {
      SumsOf(operand);
      product->sums = values_[operand].sums;
      product->sum_count = values_[operand].sum_count;
    }
    product->x = x.place;
    product->y = y;
    product->bits = NewBuffer(product->bits_size());
    product->totals = Totals(place, product->tasks().count());
    NeedScratch(product->scratch_size());
    AddStage(product->rows(), [product](const Frame& frame, int64_t begin, int64_t end) {
      product->Pack(frame, begin, end);
    });
    AddStage(
        product->tasks().count(),
        [product](const Frame& frame, int64_t begin, int64_t end) {
          product->Multiply(frame, begin, end);
        },
        false);
  }

  void PlanReal(const Chain& chain) {
    const int64_t head = chain.operations[0], place = chain.last();
    const Operation& own = Of(head);
    const Value x = values_[own.inputs[0]];
    Read(x);
    const Tensor& weight = own.weights[0];
    const Window window = WindowOfProduct(own);
    const std::vector<float> kernel =
        IsBinary(own.kind) ? UnpackedWords(weight, window.down * window.across, x.channels)
                           : weight.floats;
    auto make = [&](Epilogue epilogue) {
      return std::make_shared<RealProduct>(run_, AsImage(x), AsImage(values_[place]), window,
                                           own.kind == Kind::kConv ? own.numbers[8] : 1, kernel,
                                           std::move(epilogue));
    };
    auto product = make(EpilogueOf(chain));
    const Value* more = MoreOf(chain);
    // An image that is read where it is must stay until the last task.
    const bool over_itself =
        more != nullptr && product->direct() && more->place.buffer == x.place.buffer;
    product->y = Write(place, over_itself ? nullptr : more);
    product->x = x.place;
    if (!product->direct()) {
      product->padded = NewBuffer(product->padded_size());
      AddStage(product->rows(), [product](const Frame& frame, int64_t begin, int64_t end) {
        product->Pad(frame, begin, end);
      });
    }
    if (product->one_group()) product->totals = Totals(place, product->tasks());
    AddStage(
        product->tasks(),
        [product](const Frame& frame, int64_t begin, int64_t end) {
          product->Multiply(frame, begin, end);
        },
        false);
  }

  void PlanStem(const Chain& chain) {
    const Chain& inner = chains_[chain.stem];
    const int64_t conv = inner.operations[0], place = chain.last();
    const Value x = values_[Of(conv).inputs[0]];
    Read(x);
    auto stem = std::make_shared<PooledStem>(run_, x, values_[conv], Of(conv).weights[0].floats,
                                             EpilogueOf(inner), EpilogueOf(chain));
    stem->x = x.place;
    stem->y = Write(place);
    stem->totals = Totals(place, stem->rows());
    NeedScratch(stem->scratch_size());
    AddStage(stem->rows(), [stem](const Frame& frame, int64_t begin, int64_t end) {
      stem->Run(frame, begin, end);
    });
  }

  void PlanPool(const Chain& chain) {
    const int64_t head = chain.operations[0], place = chain.last();
    const Operation& own = Of(head);
    if (chain.stem >= 0) return PlanStem(chain);
    const Value x = InLanes(own.inputs[0]);
    Read(x);
    auto pool = std::make_shared<Pooling>(run_, x, values_[place], WindowOf(own),
                                          own.kind == Kind::kMaxPool, EpilogueOf(chain));
    Buffer* y = Write(place);
    NeedScratch(pool->scratch_size());
    Buffer* totals = Totals(place, pool->rows());
    AddStage(pool->rows(), [=, from = x.place](const Frame& frame, int64_t begin, int64_t end) {
      pool->Run(frame, frame.at(from), frame.at(y), totals == nullptr ? nullptr : frame.at(totals),
                begin, end);
    });
  }

  void PlanElementwise(const Chain& chain) {
    const int64_t head = chain.operations[0], place = chain.last();
    const Value x = InLanes(Of(head).inputs[0]);
    Read(x);
    auto epilogue = std::make_shared<const Epilogue>(EpilogueOf(chain));
    const Value* more = MoreOf(chain);
    Buffer* y = Write(place, CanOverwrite(x, place) ? &x : more);
    // A few thousand numbers each.
    const int64_t pixels = x.pixels, lanes = x.lanes, part = 4096 / lanes + 1;
    const int64_t tasks = (pixels + part - 1) / part;
    Buffer* totals = Totals(place, tasks);
    AddStage(tasks, [=, &run = run_, from = x.place](const Frame& frame, int64_t begin,
                                                     int64_t end) {
      const float *own = frame.at(from), *added = epilogue->more(frame);
      for (int64_t task = begin; task < end; ++task) {
        float sum[kLanes] = {};
        for (int64_t pixel = task * part; pixel < std::min(pixels, (task + 1) * part); ++pixel) {
          const float *sums = own + pixel * lanes,
                      *extra = added + (added == nullptr ? 0 : pixel * lanes);
          float* to = frame.at(y) + pixel * lanes;
          run.finish_floats(epilogue->from(0), 1, lanes, &sums, added == nullptr ? nullptr : &extra,
                            &to, sum);
        }
        if (totals != nullptr) frame.at(totals)[task] = Total(sum);
      }
    });
  }

  // Sums of samples ---------------------------------------------------------------------------

  // Memory for the sums that the tasks of a product leave, if they are needed. They would include
  // unused floats, so there must be none.
  Buffer* Totals(int64_t place, int64_t tasks) {
    Value& own = values_[place];
    if (!needs_mean_[place] || own.channels != own.lanes) return nullptr;
    own.sums = NewBuffer(tasks);
    own.sum_count = tasks;
    return own.sums;
  }

  // In kLanes parts, which a compiler may compute at the same time.
  static double RowSum(const float* row, int64_t length) {
    float parts[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= length; i += kLanes)
      for (int64_t lane = 0; lane < kLanes; ++lane) parts[lane] += row[i + lane];
    for (int64_t lane = 0; i < length; ++i, ++lane) parts[lane] += row[i];
    return Total(parts);
  }

  // Makes sure that there are sums of an operand, and that the current step can read them.
  void SumsOf(int64_t place) {
    Value& own = values_[place];
    if (own.sums == nullptr) {
      // Parts of some thousand numbers each.
      const int64_t part = 4096 / own.lanes + 1;
      own.sum_count = (own.pixels + part - 1) / part;
      Buffer* to = NewBuffer(own.sum_count);
      own.sums = to;
      AddStage(own.sum_count, [=, x = own](const Frame& frame, int64_t begin, int64_t end) {
        for (int64_t index = begin; index < end; ++index) {
          double sum = 0;
          for (int64_t pixel = index * part; pixel < std::min(x.pixels, (index + 1) * part);
               ++pixel)
            sum += RowSum(frame.at(x.place) + pixel * x.lanes, x.channels);
          frame.at(to)[index] = static_cast<float>(sum);
        }
      });
    }
    own.sums->last = step_;
  }

  // Other operations --------------------------------------------------------------------------

  void PlanPlain(int64_t place) {
    const Operation& own = Of(place);
    switch (own.kind) {
      case Kind::kImages: return;
      case Kind::kConstant: return PlanConstant(place);
      case Kind::kSigns:
        // Signs of which there are only products are bits.
        return PlanSigns(place);
      case Kind::kReshape: return PlanReshape(place);
      case Kind::kConcatenate: return PlanConcatenate(place);
      default: break;
    }
    const Value x = values_[own.inputs[0]];
    Read(x);
    if (own.kind == Kind::kAdd || own.kind == Kind::kMultiply) return PlanPairwise(place, x);
    const Value y = WrittenTo(place);
    const View whole = Whole(y);
    const auto axes = x.sizes.size();
    View view = Whole(x);
    switch (own.kind) {
      case Kind::kAffine:
      case Kind::kPRelu:
      case Kind::kClip:
        // Only a clip of a single number comes here.
        return Each(
            x, y, [low = own.weights[0].floats[0], high = own.weights[0].floats[1]](float number) {
              const float raised = number < low ? low : number;
              return raised > high ? high : raised;
            });
      case Kind::kSigmoid:
        return Each(x, y, [](float number) { return 1 / (1 + std::exp(-number)); });
      case Kind::kTanh: return Each(x, y, [](float number) { return std::tanh(number); });
      case Kind::kSoftmax:
        return AddStage(x.pixels, [=](const Frame& frame, int64_t begin, int64_t end) {
          for (int64_t pixel = begin; pixel < end; ++pixel)
            SoftmaxRow(frame.at(x.place) + pixel * x.lanes, x.channels,
                       frame.at(y.place.buffer) + pixel * y.lanes);
        });
      case Kind::kSum:
      case Kind::kMax: {
        auto reduction =
            std::make_shared<const Reduction>(x, y, own.numbers, own.kind == Kind::kMax);
        NeedScratch(reduction->scratch_size());
        return AddStage(1, [=](const Frame& frame, int64_t, int64_t) {
          reduction->Run(frame.at(x.place), reinterpret_cast<double*>(frame.scratch),
                         frame.at(y.place.buffer));
        });
      }
      case Kind::kSlice:
        for (size_t axis = 0; axis < axes; ++axis) {
          view.start += own.numbers[axis] * view.strides[axis];
          view.strides[axis] *= own.numbers[2 * axes + axis];
        }
        return Copies(y.sizes, view, x, whole, y);
      case Kind::kTranspose: {
        const Sizes strides = view.strides;
        for (size_t axis = 0; axis < axes; ++axis) view.strides[axis] = strides[own.numbers[axis]];
        return Copies(y.sizes, view, x, whole, y);
      }
      case Kind::kBroadcast: return Copies(y.sizes, Repeated(x, y.sizes), x, whole, y);
      case Kind::kPad: {
        View inside = whole;
        for (size_t axis = 0; axis < axes; ++axis)
          inside.start += own.numbers[axis] * inside.strides[axis];
        return AddStage(
            1, [=, value = own.weights[0].floats[0]](const Frame& frame, int64_t, int64_t) {
              float* to = frame.at(y.place.buffer);
              std::fill_n(to, y.memory(), value);
              Copy(x.sizes, view, frame.at(x.place), inside, to);
            });
      }
      default: throw std::invalid_argument("operations that can be planned");
    }
  }

  Value WrittenTo(int64_t place) {
    Write(place);
    return values_[place];
  }

  void PlanConstant(int64_t place) {
    Value& own = values_[place];
    Aligned<float> all(own.memory());
    const float* from = Of(place).weights[0].floats.data();
    for (int64_t pixel = 0; pixel < own.pixels; ++pixel)
      std::copy_n(from + pixel * own.channels, own.channels, all.data() + pixel * own.lanes);
    plan_.constants.push_back(std::move(all));
    own.place = {nullptr, plan_.constants.back().data()};
  }

  void PlanSigns(int64_t place) {
    const int64_t operand = Of(place).inputs[0];
    const Threshold threshold(Of(place).weights[0]);
    const Value x = values_[operand];
    Read(x);
    if (threshold.centred) SumsOf(operand);
    const Value from = values_[operand], y = WrittenTo(place);
    AddStage(1, [=](const Frame& frame, int64_t, int64_t) {
      float least = threshold.least;
      if (threshold.centred) {
        double sum = 0;
        for (int64_t i = 0; i < from.sum_count; ++i) sum += frame.at(from.sums)[i];
        least = static_cast<float>(sum / static_cast<double>(from.count()));
      }
      for (int64_t pixel = 0; pixel < x.pixels; ++pixel) {
        const float* row = frame.at(x.place) + pixel * x.lanes;
        float* to = frame.at(y.place.buffer) + pixel * y.lanes;
        for (int64_t c = 0; c < x.channels; ++c)
          to[c] = row[c] >= (threshold.per_channel.empty() ? least : threshold.per_channel[c])
                      ? 1.0f
                      : -1.0f;
      }
    });
  }

  // Numbers stay where they are if memory has no unused floats between them.
  void PlanReshape(int64_t place) {
    const Value x = values_[Of(place).inputs[0]];
    Value& own = values_[place];
    Read(x);
    const bool same = x.lanes == own.lanes && x.channels == own.channels;
    if ((same || (x.lanes == x.channels && own.lanes == own.channels)) &&
        x.place.buffer != nullptr) {
      own.place = x.place;
      Hold(x.place.buffer, place);
      return;
    }
    const Value y = WrittenTo(place);
    AddStage(1, [=](const Frame& frame, int64_t, int64_t) {
      CopyInOrder(x, frame.at(x.place), y, frame.at(y.place.buffer));
    });
  }

  void PlanConcatenate(int64_t place) {
    const Operation& own = Of(place);
    const Value y = WrittenTo(place);
    View to = Whole(y);
    const auto axis = own.numbers[0];
    for (const int64_t input : own.inputs) {
      const Value x = values_[input];
      Read(x);
      Copies(x.sizes, Whole(x), x, to, y);
      to.start += x.sizes[axis] * to.strides[axis];
    }
  }

  void PlanPairwise(int64_t place, const Value& a) {
    const Operation& own = Of(place);
    const Value b = values_[own.inputs[1]];
    Read(b);
    const Value y = WrittenTo(place);
    const View a_view = Repeated(a, y.sizes), b_view = Repeated(b, y.sizes), to = Whole(y);
    const bool adds = own.kind == Kind::kAdd;
    AddStage(1, [=](const Frame& frame, int64_t, int64_t) {
      const float *x1 = frame.at(a.place), *x2 = frame.at(b.place);
      float* result = frame.at(y.place.buffer);
      if (adds)
        Pairwise(y.sizes, a_view, x1, b_view, x2, to, result,
                 [](float m, float n) { return m + n; });
      else
        Pairwise(y.sizes, a_view, x1, b_view, x2, to, result,
                 [](float m, float n) { return m * n; });
    });
  }

  void Copies(const Sizes& sizes, const View& from, const Value& x, const View& to,
              const Value& y) {
    AddStage(1, [=](const Frame& frame, int64_t, int64_t) {
      Copy(sizes, from, frame.at(x.place), to, frame.at(y.place.buffer));
    });
  }

  template <typename Function>
  void Each(const Value& x, const Value& y, const Function& function) {
    AddStage(x.pixels, [=](const Frame& frame, int64_t begin, int64_t end) {
      for (int64_t pixel = begin; pixel < end; ++pixel) {
        const float* row = frame.at(x.place) + pixel * x.lanes;
        float* to = frame.at(y.place.buffer) + pixel * y.lanes;
        for (int64_t c = 0; c < x.channels; ++c) to[c] = function(row[c]);
      }
    });
  }

  const Program& program_;
  Plan& plan_;
  const Variant& run_;
  std::vector<Value> values_;
  std::vector<Sizes> users_;  // of each operation's result; twice where both operands are it
  std::vector<char> needed_, needs_mean_;
  std::vector<Chain> chains_;
  std::vector<int64_t> chain_of_;  // -1 for operations of no chain
  std::unique_ptr<Value> images_in_lanes_;
  // The last step that reads what a buffer holds or held before.
  std::map<Buffer*, int64_t> last_users_;
  int64_t step_ = 0;
  int64_t weights_ = 0;  // numbers and words
};

}  // namespace siman

#endif  // SIMAN_PLANNER_H_
