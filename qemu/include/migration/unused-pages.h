/*
 * Live migration: pages that the guest does not use
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_UNUSED_PAGES_H
#define QEMU_MIGRATION_UNUSED_PAGES_H

#include "exec/cpu-common.h"
#include "qapi/qapi-types-migration.h"
#include "qemu/stats64.h"
#include "qemu/thread.h"

/* Whether migration can ask, and if not, why: an UnusedPagesReason */
typedef enum UnusedPagesReady {
    UNUSED_PAGES_SNAPSHOT,      /* in the background */
    UNUSED_PAGES_COLO,
    UNUSED_PAGES_NO_CAPABILITY, /* sparse-ram, so that it is not agreed on */
    UNUSED_PAGES_STOPPED,       /* the VM is */
    UNUSED_PAGES_NO_RAM,        /* that is sent, and may be left out */
    UNUSED_PAGES_NO_DRIVER,     /* that can be asked */
    UNUSED_PAGES_NO_BUFFER,     /* to ask with has ever come */
    UNUSED_PAGES_LATE_BUFFER,   /* to ask with: it should come */
    UNUSED_PAGES_BUSY,          /* an answer is outstanding: it should end */
    UNUSED_PAGES_CANCELLED,     /* while that was waited for, or armed */
    UNUSED_PAGES_READY,
} UnusedPagesReady;

/*
 * A device that can ask the guest.  Its functions are called under the BQL;
 * there is one such device at a time.
 */
typedef struct UnusedPagesProvider UnusedPagesProvider;
struct UnusedPagesProvider {
    /* Whether a request now is worth to be prepared */
    UnusedPagesReady (*ready)(UnusedPagesProvider *p);
    /*
     * Ask for the unused pages of a guest-physical range, as soon as may be,
     * if that is ready.
     */
    UnusedPagesReady (*request)(UnusedPagesProvider *p, hwaddr start,
                                hwaddr length);
    /* Before anything is asked: has the guest free memory, if it is to */
    bool (*prepare)(UnusedPagesProvider *p);
    /* Whether that goes on, and how many bytes it has brought; or ends it */
    bool (*preparing)(UnusedPagesProvider *p, bool end, uint64_t *bytes);
    /* Whatever was asked, the answer is of no use any more */
    void (*cancel)(UnusedPagesProvider *p);

    /* Kept by the migration thread */
    Stat64 unsent_bytes;        /* that were dirty, and are not any more */
    Stat64 timeouts;            /* waits that took too long */
    Stat64 not_asked[UNUSED_PAGES_READY];   /* for that reason */
};

typedef enum UnusedPagesEnd {
    UNUSED_PAGES_DONE,
    UNUSED_PAGES_ERROR,         /* what was reported before is valid */
    UNUSED_PAGES_DEAD,          /* nothing of it may be applied any more */
} UnusedPagesEnd;

/* For the device, under the BQL */

bool unused_pages_register(UnusedPagesProvider *p);
void unused_pages_unregister(UnusedPagesProvider *p);
/* Pages that were unused at some moment after request() was called */
void unused_pages_report(UnusedPagesProvider *p, RAMBlock *rb,
                         ram_addr_t start, ram_addr_t length);
void unused_pages_end(UnusedPagesProvider *p, UnusedPagesEnd how);

/* For the migration thread */

/*
 * Has the device prepare the guest, and waits for that, as long as the device
 * lets it.  Called without any lock.
 */
void unused_pages_prepare(void);
/*
 * Asks, and waits for the answer.  Called without any lock.  Returns whether
 * there is a device that can ask, so that it may have taken its time.
 */
bool unused_pages_ask(QemuMutex *bitmap_mutex, uint64_t *dirty_pages);
/*
 * Asks once more, if that pays, without waiting.  Called under the BQL by the
 * migration thread, behind a synchronisation.
 */
void unused_pages_ask_again(uint64_t dirty_pages);
/*
 * Waits for the answers for a moment, if what they are likely to leave can be
 * sent with the VM stopped.  Called without any lock, behind that.
 */
void unused_pages_try_last(QemuMutex *bitmap_mutex, uint64_t *dirty_pages);
/* Applies what has come.  Called with bitmap_mutex, in an RCU section. */
void unused_pages_iterate(QEMUFile *f, uint64_t *dirty_pages);
/*
 * With postcopy, what was left out has to be sent after all, as pages of zeros.
 * Called with bitmap_mutex, or when nobody else looks at the bitmaps.
 */
/* The block's dirty bits were synchronised */
void unused_pages_written(RAMBlock *rb);
/* Returns how many bits of RAMBlock.bmap it set */
uint64_t unused_pages_put_back(RAMBlock *rb);
bool unused_pages_left_out(RAMBlock *rb, unsigned long page);
/* Whether pages were asked for since the last synchronisation */
bool unused_pages_asked(void);

/* Under the BQL: a synchronisation of the dirty log begins */
void unused_pages_expire(void);
/* What came of it, in this migration or the last one; NULL without a device */
UnusedPagesStats *unused_pages_query(void);
/* Under the BQL, in whatever thread: migration is over */
void unused_pages_cleanup(void);

#endif
