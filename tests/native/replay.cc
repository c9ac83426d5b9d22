// Replays the cases that `record.py` wrote to a file, with every variant that this machine can run,
// on one thread and on several. Results must equal the expected ones, and must be exactly the same
// when repeated. Each run is a process of its own, so that others continue after one that a
// sanitizer stops, and so that its memory is new.
//
// The file consists of 64-bit integers, bytes, and strings: a length and bytes. It holds the number
// of cases. Each case has its name, the number of numbers, each with its name, and the number of
// arrays, each with its name, type, number of sizes, sizes and bytes. A case's first word says what
// to call; an array "expected y" is the expected value of y.

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "binary_conv.h"
#include "executor.h"
#include "norms.h"
#include "planner.h"
#include "pooling.h"
#include "process.h"
#include "program.h"
#include "real_conv.h"
#include "select.h"
#include "training_conv.h"
#include "variants.h"
#include "weights.h"

namespace siman {

#if defined(__x86_64__)
namespace portable16 {
extern const Variant kVariant;
}
namespace portable64 {
extern const Variant kVariant;
}
#endif

namespace {

constexpr char kExpected[] = "expected ";
constexpr unsigned kPatience = 120;  // seconds, for a run that takes less than one
constexpr double kTolerance = 1e-5;  // for floats, relative to the largest one of their row

[[noreturn]] void Fail(const std::string& message) {
  std::fprintf(stderr, "%s\n", message.c_str());
  std::exit(2);
}

struct Array {
  std::string type;
  std::vector<int64_t> sizes;
  std::vector<char> bytes;

  template <typename T>
  T* data() {
    return reinterpret_cast<T*>(bytes.data());
  }
  template <typename T>
  const T* data() const {
    return reinterpret_cast<const T*>(bytes.data());
  }
  template <typename T>
  const T* OrNull() const {
    return bytes.empty() ? nullptr : data<T>();
  }
};

struct Case {
  std::string name;
  std::map<std::string, int64_t> numbers;
  std::map<std::string, Array> arrays;
};

class Reader {
 public:
  explicit Reader(const char* path) : file_(path, std::ios::binary) {}

  std::vector<Case> Cases() {
    std::vector<Case> cases(Integer());
    for (Case& own : cases) {
      own.name = String();
      for (int64_t left = Integer(); left > 0; --left) {
        const std::string name = String();
        own.numbers[name] = Integer();
      }
      for (int64_t left = Integer(); left > 0; --left) {
        Array& array = own.arrays[String()];
        array.type = String();
        array.sizes.resize(Integer());
        for (int64_t& size : array.sizes) size = Integer();
        array.bytes.resize(Integer());
        Read(array.bytes.data(), array.bytes.size());
      }
    }
    return cases;
  }

 private:
  void Read(void* to, size_t size) {
    if (!file_.read(static_cast<char*>(to), static_cast<std::streamsize>(size)))
      Fail("the file of cases is not whole");
  }
  int64_t Integer() {
    int64_t number;
    Read(&number, sizeof(number));
    return number;
  }
  std::string String() {
    std::string text(Integer(), ' ');
    Read(text.data(), text.size());
    return text;
  }

  std::ifstream file_;
};

// A pool whose threads and caller begin together, so that even short work is shared.
class Threads {
 public:
  explicit Threads(int64_t count) : count_(count) {}
  ~Threads() {
    for (std::thread& thread : all_) thread.join();
  }
  Pool pool() {
    return {count_, [this](int64_t times, const std::function<void()>& work) {
              const int64_t goal = ready_ + times;
              for (; times > 0; --times) {
                all_.emplace_back([this, goal, work] {
                  ready_.fetch_add(1);
                  WaitFor(ready_, goal);
                  work();
                });
              }
              WaitFor(ready_, goal);
            }};
  }

 private:
  int64_t count_;
  std::atomic<int64_t> ready_{0};
  std::vector<std::thread> all_;
};

// A running case.
class Call {
 public:
  Call(const Case& own, const Variant* variant, Pool pool)
      : variant(variant), pool(std::move(pool)), own_(own) {}

  int64_t Number(const char* name) const { return own_.numbers.at(name); }
  const Array& In(const std::string& name) const { return own_.arrays.at(name); }
  template <typename T>
  const T* Data(const char* name) const {
    return In(name).data<T>();
  }
  bool Has(const std::string& name) const { return own_.arrays.count(name) != 0; }
  bool Expects(const char* name) const { return own_.arrays.count(kExpected + std::string(name)); }
  const int64_t* Sizes(const char* name) const {
    return In(kExpected + std::string(name)).sizes.data();
  }
  // Memory for a result, filled with unusual values; null if none is expected.
  template <typename T>
  T* Out(const char* name) {
    if (!Expects(name)) return nullptr;
    Array& result = results[name] = In(kExpected + std::string(name));
    std::fill(result.bytes.begin(), result.bytes.end(), static_cast<char>(0xff));
    return result.data<T>();
  }

  const Variant* variant;
  const Pool pool;
  std::map<std::string, Array> results;

 private:
  const Case& own_;
};

Numbers NumbersOf(const Array& y) {
  if (y.type == "i2") return {nullptr, y.data<int16_t>()};
  return {y.data<float>(), nullptr};
}

// The norm before a convolution, if the case has one.
NormStep NormBefore(const Call& call, int64_t channels) {
  if (!call.Has("before y")) return {};
  return {NormOf(call.Data<float>("before norm"), channels,
                 static_cast<Activation>(call.Number("before_activation"))),
          NumbersOf(call.In("before y")), call.In("before shortcut").OrNull<float>()};
}

void RunConvForward(Call& call) {
  const Array& code = call.In("code");
  const bool sums = call.Expects("sums"), makes = call.Expects("x");
  auto* made = call.Out<float>("x");
  const int64_t* sizes = makes ? call.Sizes("x") : call.In("x").sizes.data();
  const TrainingConv conv = MakeTrainingConv(
      call.variant, sizes, code.sizes.data(), call.Sizes(sums ? "sums" : "y") + 1,
      call.Number("stride"), call.Number("top"), call.Number("left"), call.Number("centred") != 0,
      makes ? made : call.Data<float>("x"), code.data<float>());
  RunForward(call.pool, conv, NormBefore(call, conv.channels), made, call.Data<float>("scale"),
             call.Out<float>("moments"), call.Out<int16_t>("sums"), call.Out<float>("statistics"),
             call.Out<float>("y"));
}

void RunConvBackward(Call& call) {
  const Array &x = call.In("x"), &code = call.In("code"), &g = call.In("g");
  const TrainingConv conv =
      MakeTrainingConv(call.variant, x.sizes.data(), code.sizes.data(), g.sizes.data() + 1,
                       call.Number("stride"), call.Number("top"), call.Number("left"),
                       call.Number("centred") != 0, x.data<float>(), code.data<float>());
  const bool shortcut_is_input = call.Number("shortcut_is_input") != 0;
  const Array& sums = call.In("sums");
  ResultGradient source{};
  if (sums.bytes.empty()) {
    source.dy = g.data<float>();
  } else {
    const auto* rows = call.Data<float>("norm");
    source.norm = NormOf(rows, conv.filters, static_cast<Activation>(call.Number("activation")));
    source.gradient = GradientOf(rows, conv.filters);
    source.dout = g.data<float>();
    source.sums = sums.data<int16_t>();
    source.shortcut = shortcut_is_input ? x.data<float>() : call.In("shortcut").OrNull<float>();
  }
  const ConvGradients to{call.Out<float>("kernel"),
                         call.Number("times_scale") != 0,
                         call.Out<float>("dx"),
                         call.Out<float>("dshortcut"),
                         shortcut_is_input,
                         NormBefore(call, conv.channels),
                         call.Out<float>("before sums")};
  ConvBackward(call.pool, conv, call.Data<float>("moments"),
               static_cast<Estimator>(call.Number("estimator")), call.Data<float>("scale"), source,
               to)
      .Run();
}

RealConv RealConvOf(const Call& call, const int64_t* kernel, const int64_t* result) {
  const Array& x = call.In("x");
  return MakeRealConv(call.variant, x.sizes.data(), kernel, result + 1, call.Number("stride"),
                      call.Number("top"), call.Number("left"), x.data<float>());
}

void RunRealForward(Call& call) {
  const Array& kernel = call.In("kernel");
  RunRealForward(call.pool, RealConvOf(call, kernel.sizes.data(), call.Sizes("y")),
                 kernel.data<float>(), call.Out<float>("y"));
}

void RunRealGradient(Call& call) {
  const Array& g = call.In("g");
  RunRealKernelGradient(call.pool, RealConvOf(call, call.Sizes("kernel"), g.sizes.data()),
                        g.data<float>(), call.Out<float>("kernel"));
}

void RunPooling(Call& call) {
  const Array &x = call.In("x"), &g = call.In("g");
  const MaxPool n{x.sizes[0],
                  x.sizes[1],
                  x.sizes[2],
                  x.sizes[3],
                  g.sizes[1],
                  g.sizes[2],
                  call.Number("down"),
                  call.Number("across"),
                  call.Number("row_stride"),
                  call.Number("column_stride"),
                  call.Number("top"),
                  call.Number("left")};
  const Training& run = *call.variant->training;
  auto* which = call.Out<uint8_t>("which");
  RunMaxPool(call.pool, run, n, x.data<float>(), call.Out<float>("y"), which);
  RunMaxPoolGradient(call.pool, run, n, g.data<float>(), which, call.Out<float>("dx"));
}

void RunExceedsKth(Call& call) {
  const Array& x = call.In("x");
  ExceedsKth(call.pool, *call.variant->training, x.sizes[0], x.sizes[1], x.data<float>(),
             call.Data<int32_t>("ranks"), call.Out<bool>("exceeds"));
}

void RunKthOfAll(Call& call) {
  const Array &x = call.In("x"), &ranks = call.In("ranks");
  KthOfAll(call.pool, *call.variant->training, x.sizes[0], x.data<float>(), ranks.sizes[0],
           ranks.data<int32_t>(), call.Out<float>("found"));
}

LatentKernel LatentOf(const Array& w) { return {w.sizes[0], w.sizes[1], w.data<float>()}; }

void RunProject(Call& call) {
  Project(call.pool, *call.variant->training, LatentOf(call.In("w")), call.Data<int32_t>("ranks"),
          call.Data<float>("weights"), call.Out<float>("projected"));
}

// The two calls for the binarization of a latent kernel in a step.
void RunMagnitudeCode(Call& call) {
  const Training& run = *call.variant->training;
  const LatentKernel kernel = LatentOf(call.In("w"));
  MagnitudeCode(call.pool, run, kernel, 1e-5f, call.Number("rank"), call.Out<float>("code"),
                call.Out<float>("moments"));
  MagnitudeCodeGradient(call.pool, run, kernel, call.Data<float>("given moments"),
                        call.Data<float>("g"), call.Out<float>("dw"));
}

// The four calls for a norm in a step.
void RunNorm(Call& call) {
  const Array &y = call.In("y"), &shortcut = call.In("shortcut");
  const Training& run = *call.variant->training;
  const Samples all{y.sizes[0], y.sizes[1], y.sizes[2]};
  const Numbers numbers = NumbersOf(y);
  const auto *rows = call.Data<float>("norm"), *g = call.Data<float>("g"),
             *more = shortcut.OrNull<float>();
  const BatchNorm norm =
      NormOf(rows, all.channels, static_cast<Activation>(call.Number("activation")));
  RunNormStatistics(call.pool, run, all, numbers, call.Out<float>("statistics"));
  RunNormForward(call.pool, run, all, norm, numbers, more, call.Out<float>("out"));
  RunNormSums(call.pool, run, all, norm, g, numbers, more, call.Out<float>("sums"));
  RunNormBackward(call.pool, run, all, norm, GradientOf(rows, all.channels), g, numbers, more,
                  call.Out<float>("dy"), call.Out<float>("dshortcut"));
}

void RunBits(Call& call) {
  const Array &bits = call.In("bits"), &kernel = call.In("kernel");
  const int64_t *image = bits.sizes.data(), *words = call.Sizes("padded"),
                *taps = kernel.sizes.data(), *to = call.Sizes("y");
  const Convolution n{image[1],
                      image[2],
                      words[1],
                      words[2],
                      words[3],
                      taps[0],
                      taps[1],
                      to[1],
                      to[2],
                      to[3],
                      call.Number("top"),
                      call.Number("left"),
                      call.Number("stride")};
  RunBinaryConv(call.pool, *call.variant, n, image[0], image[3], bits.data<uint8_t>(),
                kernel.data<uint32_t>(), call.Data<int32_t>("corner_sums"),
                call.Out<uint32_t>("padded"), call.Out<int32_t>("y"));
}

// A planned network, on the threads of the case and on those of the process; then in calls from
// several threads at once, of other batches and with other numbers of threads each.
void RunPlanned(Call& call) {
  struct Parts {
    std::string kind;
    std::vector<siman_array> weights;
  };
  const int64_t count = call.Number("operations");
  std::vector<Parts> parts(count);
  std::vector<siman_operation> operations;
  for (int64_t i = 0; i < count; ++i) {
    const std::string place = std::to_string(i);
    const Array &kind = call.In("kind " + place), &inputs = call.In("inputs " + place),
                &numbers = call.In("numbers " + place);
    Parts& own = parts[i];
    own.kind.assign(kind.data<char>(), kind.bytes.size());
    for (int64_t index = 0; index < call.In("weights " + place).sizes[0]; ++index) {
      const std::string name = "weight " + place + " " + std::to_string(index);
      if (!call.Has(name)) {
        own.weights.push_back({});
        continue;
      }
      const Array& weight = call.In(name);
      own.weights.push_back({weight.bytes.data(),
                             weight.type == "u4" ? SIMAN_UINT32 : SIMAN_FLOAT32,
                             static_cast<int64_t>(weight.sizes.size()), weight.sizes.data()});
    }
    operations.push_back({own.kind.c_str(), inputs.sizes[0], inputs.data<int64_t>(),
                          numbers.sizes[0], numbers.data<int64_t>(),
                          static_cast<int64_t>(own.weights.size()), own.weights.data()});
  }
  const Program program = ProgramReader::Read(count, operations.data(), count - 1);
  Executor executor(Planner::Make(*call.variant, program));
  const Array& images = call.In("images");
  auto* results = call.Out<float>("results");
  executor.Run(call.pool, images.sizes[0], images.data<float>(), results);
  std::vector<float> again(call.results.at("results").bytes.size() / sizeof(float));
  for (int64_t threads = 1; threads <= 3; ++threads) {
    executor.Run(ProcessPool(threads), images.sizes[0], images.data<float>(), again.data());
    if (!std::equal(again.begin(), again.end(), results)) Fail("other results on own threads");
  }
  std::atomic<int64_t> wrong{0};
  std::vector<std::thread> callers;
  for (int64_t caller = 0; caller < 4; ++caller)
    callers.emplace_back([&, caller] {
      std::vector<float> found(again.size());
      for (int64_t turn = 0; turn < images.sizes[0]; ++turn) {
        const int64_t batch = 1 + (turn + caller) % images.sizes[0];
        executor.Run(ProcessPool(1 + caller % 3), batch, images.data<float>(), found.data());
        const auto end = found.begin() + batch * executor.result_size();
        if (!std::equal(found.begin(), end, results)) ++wrong;
      }
    });
  for (std::thread& caller : callers) caller.join();
  if (wrong > 0) Fail("other results when several threads call");
}

const std::map<std::string, void (*)(Call&)> kCalls = {
    {"conv_forward", RunConvForward},
    {"conv_backward", RunConvBackward},
    {"real_forward", RunRealForward},
    {"real_gradient", RunRealGradient},
    {"pool", RunPooling},
    {"exceeds_kth", RunExceedsKth},
    {"kth_of_all", RunKthOfAll},
    {"norm", RunNorm},
    {"project", RunProject},
    {"magnitude_code", RunMagnitudeCode},
    {"bits", RunBits},
    {"network", RunPlanned},
};

// Compares floats up to `kTolerance`; arrays with two sizes row by row.
bool Close(const Array& found, const Array& expected) {
  const auto size = static_cast<int64_t>(expected.bytes.size() / sizeof(float));
  const int64_t row = expected.sizes.size() == 2 ? expected.sizes[1] : size;
  for (int64_t start = 0; start < size; start += row) {
    const float *a = found.data<float>() + start, *b = expected.data<float>() + start;
    double largest = 0, error = 0;
    for (int64_t i = 0; i < row; ++i) {
      if (std::isnan(a[i])) return false;
      largest = std::max(largest, std::abs(double{b[i]}));
      error = std::max(error, std::abs(double{a[i]} - double{b[i]}));
    }
    if (error > kTolerance * largest) return false;
  }
  return true;
}

std::map<std::string, Array> Results(const Case& own, const Variant* variant, int64_t threads) {
  Threads pool(threads);
  Call call(own, variant, pool.pool());
  kCalls.at(own.name.substr(0, own.name.find(' ')))(call);
  return std::move(call.results);
}

bool Passes(const Case& own, const Variant* variant) {
  const auto alone = Results(own, variant, 1), together = Results(own, variant, 3);
  bool good = true;
  auto complain = [&](const std::string& result, const char* what) {
    std::fprintf(stderr, "%s, %s: %s %s\n", own.name.c_str(), variant->name, result.c_str(), what);
    good = false;
  };
  for (const auto& [name, found] : alone) {
    const Array& expected = own.arrays.at(kExpected + name);
    const bool same = found.bytes == expected.bytes;
    if (!same && !(expected.type == "f4" && Close(found, expected))) complain(name, "is wrong");
    if (found.bytes != together.at(name).bytes) complain(name, "differs on three threads");
  }
  if (alone.empty()) complain("nothing", "is expected");
  return good;
}

std::vector<const Variant*> Variants() {
  std::vector<const Variant*> all;
  for (int i = 0; kVariants[i] != nullptr; ++i)
    if (kVariants[i]->supported()) all.push_back(kVariants[i]);
#if defined(__x86_64__)
  all.push_back(&portable16::kVariant);
  all.push_back(&portable64::kVariant);
#endif
  return all;
}

int Replay(const char* path) {
  const std::vector<Case> cases = Reader(path).Cases();
  std::string names;
  int64_t runs = 0, failures = 0;
  for (const Variant* variant : Variants()) {
    names += std::string(names.empty() ? "" : ", ") + variant->name;
    for (const Case& own : cases) {
      const pid_t child = fork();
      if (child < 0) Fail("cannot fork");
      if (child == 0) {
        alarm(kPatience);
        _exit(Passes(own, variant) ? 0 : 1);
      }
      int status;
      if (waitpid(child, &status, 0) != child) Fail("cannot wait");
      ++runs;
      if (status == 0) continue;
      ++failures;
      std::printf("FAILED: %s, %s\n", own.name.c_str(), variant->name);
      std::fflush(stdout);
    }
  }
  std::printf("%zu cases by %s: %lld of %lld runs failed\n", cases.size(), names.c_str(),
              static_cast<long long>(failures), static_cast<long long>(runs));
  return failures == 0 && runs > 0 ? 0 : 1;
}

}  // namespace
}  // namespace siman

int main(int count, char** arguments) {
  if (count != 2) siman::Fail("usage: replay FILE");
  return siman::Replay(arguments[1]);
}
