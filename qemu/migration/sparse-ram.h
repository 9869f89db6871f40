/*
 * Live migration: RAM of which little is sent
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_SPARSE_RAM_H
#define QEMU_MIGRATION_SPARSE_RAM_H

#include "exec/cpu-common.h"
#include "qemu-file.h"

/*
 * Tells the destination of what regions of these pages little is to be sent,
 * by the dirty bitmap.  With bitmap_mutex, in an RCU section, and before any
 * of the pages is sent.
 */
void sparse_ram_save(QEMUFile *f, RAMBlock *rb, unsigned long first_page,
                     unsigned long last_page);

/* Reads what that has written behind its flag; 0, or a negative errno */
int sparse_ram_load(QEMUFile *f);
/* All is loaded, or nothing will come any more: memory is as it was again. */
void sparse_ram_load_cleanup(void);

#endif
