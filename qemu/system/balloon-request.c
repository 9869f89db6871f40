/*
 * What a balloon's driver can be asked for
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-machine.h"
#include "qobject/qdict.h"
#include "qapi/util.h"
#include "system/balloon-request.h"

static const BalloonRequestOps *request_ops;
static void *request_opaque;

bool balloon_request_register(const BalloonRequestOps *ops, void *opaque)
{
    if (request_ops) {
        return false;
    }
    request_ops = ops;
    request_opaque = opaque;
    return true;
}

void balloon_request_unregister(void *opaque)
{
    if (request_opaque == opaque) {
        request_ops = NULL;
        request_opaque = NULL;
    }
}

static bool balloon_request_possible(Error **errp)
{
    if (!request_ops) {
        error_set(errp, ERROR_CLASS_DEVICE_NOT_ACTIVE,
                  "No balloon device has a misc queue");
        return false;
    }
    return true;
}

static BalloonRequestInfo *balloon_request_query(Error **errp)
{
    BalloonRequestInfo *info = g_new0(BalloonRequestInfo, 1);

    if (!request_ops->query(request_opaque, info)) {
        error_setg(errp, "Nothing has been asked for");
        qapi_free_BalloonRequestInfo(info);
        return NULL;
    }
    return info;
}

BalloonRequestInfo *qmp_balloon_request(BalloonRequestType type,
                                        bool has_bytes, uint64_t bytes,
                                        bool has_timeout, uint32_t timeout,
                                        bool has_swap, bool swap, Error **errp)
{
    bool reclaims = type == BALLOON_REQUEST_TYPE_RECLAIM;

    if (!balloon_request_possible(errp)) {
        return NULL;
    }
    if (!reclaims && (has_bytes || has_timeout || has_swap)) {
        error_setg(errp, "Only 'reclaim' has bytes, timeout and swap");
        return NULL;
    }
    if (reclaims && !bytes) {
        error_setg(errp, "'reclaim' needs to know how many bytes");
        return NULL;
    }
    if (has_timeout && !timeout) {
        error_setg(errp, "A timeout of 0 is no time at all");
        return NULL;
    }
    if (!request_ops->start(request_opaque, type, bytes, timeout, swap,
                            errp)) {
        return NULL;
    }
    return balloon_request_query(errp);
}

void qmp_balloon_request_cancel(Error **errp)
{
    if (balloon_request_possible(errp)) {
        request_ops->cancel(request_opaque);
    }
}

BalloonRequestInfo *qmp_query_balloon_request(Error **errp)
{
    return balloon_request_possible(errp) ? balloon_request_query(errp) : NULL;
}

void hmp_balloon_request(Monitor *mon, const QDict *qdict)
{
    uint64_t bytes = qdict_get_try_int(qdict, "size", 0);
    BalloonRequestInfo *info = NULL;
    Error *err = NULL;
    int type = qapi_enum_parse(&BalloonRequestType_lookup,
                               qdict_get_str(qdict, "type"), -1, &err);

    if (type >= 0) {
        info = qmp_balloon_request(type, bytes, bytes, false, 0, false, false,
                                   &err);
    }
    qapi_free_BalloonRequestInfo(info);
    hmp_handle_error(mon, err);
}

void hmp_info_balloon_request(Monitor *mon)
{
    BalloonRequestInfo info;

    if (request_ops && request_ops->query(request_opaque, &info)) {
        monitor_printf(mon, "last request: %s %s, %" PRIu64 " MB in %" PRIu64
                       " ms\n", BalloonRequestType_str(info.type),
                       BalloonRequestStatus_str(info.status),
                       info.bytes >> 20, info.time);
    }
}
