// What the library tells of itself; Python calls it through ctypes.

#include "variants.h"

extern "C" {

// Name of a variant, in order of speed; null beyond the last one.
const char* siman_variant_name(int index) {
  const siman::Variant* variant = siman::kVariants[index];
  return variant == nullptr ? nullptr : variant->name;
}

int siman_variant_supported(int index) { return siman::kVariants[index]->supported; }
}
