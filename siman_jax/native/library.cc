// What the library tells of itself; Python calls it through ctypes.

#include "variants.h"

#if defined(__linux__)
#include <malloc.h>
#endif

extern "C" {

// Name of a variant, in order of speed; null beyond the last one.
const char* siman_variant_name(int index) {
  const siman::Variant* variant = siman::kVariants[index];
  return variant == nullptr ? nullptr : variant->name;
}

int siman_variant_supported(int index) { return siman::kVariants[index]->supported(); }

// Freed memory stays with the process. XLA asks for a step's temporaries, some hundred megabytes,
// in one piece at each step; by default that piece comes from the system and goes back to it, and
// the first access to each of its pages costs more than most computations on it.
void siman_keep_memory() {
#if defined(__GLIBC__)
  mallopt(M_ARENA_MAX, 1);
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);
#endif
}
}
