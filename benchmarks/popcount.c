/* A simple loop for products of bits, to measure its speed: a tile of four rows of words times
   columns of words, all in the first cache, with sums in registers. The compiler vectorizes over
   columns; only sums are written, and nothing is packed or padded. */

#include <stdint.h>

enum { ROWS = 4, COLUMNS = 32 };

void products(const uint64_t* rows, const uint64_t* columns, uint64_t* sums, long words,
              long repetitions) {
  for (long repetition = 0; repetition < repetitions; repetition++) {
    uint64_t unequal[ROWS][COLUMNS] = {{0}};
    for (long word = 0; word < words; word++)
      for (int row = 0; row < ROWS; row++)
        for (int column = 0; column < COLUMNS; column++)
          unequal[row][column] += (uint64_t)__builtin_popcountll(rows[row * words + word] ^
                                                                 columns[word * COLUMNS + column]);
    for (int row = 0; row < ROWS; row++)
      for (int column = 0; column < COLUMNS; column++)
        sums[row * COLUMNS + column] += unequal[row][column];
    __asm__ volatile("" : : "r"(rows), "r"(columns) : "memory"); /* keeps every repetition */
  }
}
