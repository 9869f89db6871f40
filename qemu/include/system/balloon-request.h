/*
 * What a balloon's driver can be asked for
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef SYSTEM_BALLOON_REQUEST_H
#define SYSTEM_BALLOON_REQUEST_H

#include "qapi/qapi-types-machine.h"

/* Functions of the device; called under the BQL */
typedef struct BalloonRequestOps {
    /* @bytes and @timeout are 0 when they are not given */
    bool (*start)(void *opaque, BalloonRequestType type, uint64_t bytes,
                  uint32_t timeout, bool swap, Error **errp);
    void (*cancel)(void *opaque);
    /* Of the last one; false if there was none */
    bool (*query)(void *opaque, BalloonRequestInfo *info);
} BalloonRequestOps;

/* There is one such device at a time */
bool balloon_request_register(const BalloonRequestOps *ops, void *opaque);
void balloon_request_unregister(void *opaque);

/* A line about the last one, if there was one */
void hmp_info_balloon_request(Monitor *mon);

#endif
