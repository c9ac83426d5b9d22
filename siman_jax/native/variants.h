// The instruction sets that this processor may have, each in a file of its own.

#ifndef SIMAN_VARIANTS_H_
#define SIMAN_VARIANTS_H_

#include "variant.h"

namespace siman {

#if defined(__x86_64__)
namespace avx512 {
extern const Variant kVariant;
}
namespace avx2 {
extern const Variant kVariant;
}
#elif defined(__aarch64__)
namespace neon {
extern const Variant kVariant;
}
#endif

// The fastest first; null behind them.
inline constexpr const Variant* kVariants[] = {
#if defined(__x86_64__)
    &avx512::kVariant,
    &avx2::kVariant,
#elif defined(__aarch64__)
    &neon::kVariant,
#endif
    nullptr,
};

}  // namespace siman

#endif  // SIMAN_VARIANTS_H_
