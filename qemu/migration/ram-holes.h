/*
 * Live migration: holes of shared memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_RAM_HOLES_H
#define QEMU_MIGRATION_RAM_HOLES_H

#include "exec/cpu-common.h"

/* What is known of a part of a RAM block; without one, nothing is */
typedef struct RamHoles {
    RAMBlock *rb;
    ram_addr_t start, end;
    bool hole;
    uint64_t round;
} RamHoles;

/*
 * Whether a page is in a hole, and so zero.  Keeps what it learns of the pages
 * that follow: reset @h->rb before one of them may have been written, if it is
 * not known to be in the dirty log then.
 */
bool ram_holes_has(RamHoles *h, RAMBlock *rb, ram_addr_t offset);
/* For pages whose part of the dirty log was cleared; with bitmap_mutex */
bool ram_holes_has_to_send(RamHoles *h, RAMBlock *rb, ram_addr_t offset);

#endif
