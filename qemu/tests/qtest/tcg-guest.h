/*
 * Guests for tests of TCG: a ROM, some 32-bit code in it, and nothing else
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_TCG_GUEST_H
#define TESTS_TCG_GUEST_H

#include "qemu/units.h"
#include "libqtest.h"

#define TCG_GUEST_ROM_SIZE  (64 * KiB)
/* Where the test's code begins; %ds is a flat segment then */
#define TCG_GUEST_CODE      0x67

/* Switches to protected mode, all segments flat */
static const uint8_t tcg_guest_start[TCG_GUEST_CODE] = {
    0x66, 0x2e, 0x0f, 0x01, 0x16, 0x40, 0x00,   /* 0:  lgdtl %cs:0x40 */
    0x66, 0xb8, 0x01, 0x00, 0x00, 0x00,         /* 7:  mov  $1,%eax */
    0x0f, 0x22, 0xc0,                           /* d:  mov  %eax,%cr0 */
    0x66, 0xea, 0x60, 0x00, 0x0f, 0x00, 0x08, 0x00, /* ljmpl $8,$0xf0060 */
    [0x30] =
    0xff, 0xff, 0x00, 0x00, 0x00, 0x9a, 0xcf, 0x00, /* 8: flat, code */
    0xff, 0xff, 0x00, 0x00, 0x00, 0x92, 0xcf, 0x00, /* 16: flat, data */
    [0x40] =
    0x17, 0x00, 0x28, 0x00, 0x0f, 0x00,         /* the table, from 0xf0028 */
    [0x60] =
    0xb8, 0x10, 0x00, 0x00, 0x00,               /* 60: mov  $16,%eax */
    0x8e, 0xd8,                                 /* 65: mov  %eax,%ds */
};

static const uint8_t tcg_guest_reset[] = {
    0xea, 0x00, 0x00, 0x00, 0xf0,               /* ljmp $0xf000,$0 */
};

/* Writes the ROM, a file for -bios */
static inline void tcg_guest_write(const char *file, const uint8_t *code,
                                   size_t size)
{
    g_autofree uint8_t *rom = g_malloc0(TCG_GUEST_ROM_SIZE);

    memcpy(rom, tcg_guest_start, sizeof(tcg_guest_start));
    memcpy(rom + TCG_GUEST_CODE, code, size);
    memcpy(rom + TCG_GUEST_ROM_SIZE - 16, tcg_guest_reset,
           sizeof(tcg_guest_reset));
    g_assert_true(g_file_set_contents(file, (char *)rom, TCG_GUEST_ROM_SIZE,
                                      NULL));
}

/* Waits until the guest has counted on at an address */
static inline void tcg_guest_counts(QTestState *qts, uint64_t addr)
{
    uint32_t before = qtest_readl(qts, addr);

    while (qtest_readl(qts, addr) - before < 1000) {
        g_usleep(1000);
    }
}

#endif
