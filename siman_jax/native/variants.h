// The list of instruction sets for this kind of processor; each has a file of its own.

#ifndef SIMAN_VARIANTS_H_
#define SIMAN_VARIANTS_H_

#include "variant.h"

namespace siman {

// AMX needs a recent compiler, and Linux to enable it.
#if defined(__x86_64__) && defined(__linux__) && \
    ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))
#define SIMAN_HAS_AMX
#endif

#if defined(__x86_64__)
#ifdef SIMAN_HAS_AMX
namespace amx {
extern const Variant kVariant;
}
#endif
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

// The fastest first; null after the last one.
inline constexpr const Variant* kVariants[] = {
#if defined(__x86_64__)
#ifdef SIMAN_HAS_AMX
    &amx::kVariant,
#endif
    &avx512::kVariant,
    &avx2::kVariant,
#elif defined(__aarch64__)
    &neon::kVariant,
#endif
    nullptr,
};

}  // namespace siman

#endif  // SIMAN_VARIANTS_H_
