// Information about the library, which Python reads through ctypes.

#include "variants.h"

#if defined(__linux__)
#include <malloc.h>
#endif

extern "C" {

// Name of a variant, the fastest first; null after the last one.
const char* siman_variant_name(int index) {
  const siman::Variant* variant = siman::kVariants[index];
  return variant == nullptr ? nullptr : variant->name;
}

int siman_variant_supported(int index) { return siman::kVariants[index]->supported(); }

// Makes the process keep freed memory. XLA allocates a step's temporaries, some hundred megabytes,
// in one piece at each step. By default this memory comes from the system and is returned to it,
// and the first access to each page costs more than most computations on it.
void siman_keep_memory() {
#if defined(__GLIBC__)
  mallopt(M_ARENA_MAX, 1);
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);
#endif
}
}
