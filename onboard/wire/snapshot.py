"""A link's counters and progress, gathered from the parts of its session into one value."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from onboard.wire.events import LinkSnapshot
from onboard.wire.hearing import ReceiveStats
from onboard.wire.medium.access import ContactGate
from onboard.wire.medium.air import MediumAccess
from onboard.wire.mishaps import LinkDiagnostics
from onboard.wire.security.seal import Opener
from onboard.wire.security.seals import SecurityContext
from onboard.wire.transfer.inbox import Inbox
from onboard.wire.transfer.outbox import Outbox


def link_snapshot(
    now: float,
    access: ContactGate,
    air: MediumAccess,
    seals: SecurityContext,
    group: Opener | None,
    hearing: ReceiveStats,
    inbox: Inbox,
    outbox: Outbox,
    mishaps: LinkDiagnostics,
    *,
    malformed: int,
    bytes_sent: int,
) -> LinkSnapshot:
    """group: of broadcasts. malformed, bytes_sent: what the session itself has counted."""
    sealer, greeting = seals.sealer, seals.greeting
    openers = [seals.opener, greeting.opener] + ([] if group is None else [group])
    objects = [*outbox.progress(access.link_s(now)), *inbox.progress(hearing.loss)]
    when = partial(access.when, now)
    (out_s, out_passes), (in_s, in_passes) = (  # objects of one way share the air: their times add up
        when(sum(each.eta_s for each in objects if each.incoming == way)) for way in (False, True)
    )
    return LinkSnapshot(
        now=now,
        epoch=sealer.epoch,
        peer_epoch=hearing.epoch,
        key_id=sealer.key_id,
        encrypted=seals.encrypted,
        frames_sent=sealer.seq,
        bytes_sent=bytes_sent,
        frames_received=sum(opener.opened for opener in openers),
        bytes_received=hearing.bytes,
        malformed=malformed + inbox.malformed + sum(opener.malformed for opener in openers),
        bad_tags=sum(opener.bad_tags for opener in openers),
        unknown_keys=sum(opener.unknown_keys for opener in openers),
        plain_dropped=sum(opener.plain_dropped for opener in openers),
        encrypted_dropped=sum(opener.encrypted_dropped for opener in openers),
        replays=sum(opener.replays for opener in openers),
        unproven=greeting.unproven,
        hellos_sent=greeting.sent,
        hellos_received=greeting.heard,
        hellos_stale=greeting.stale,
        misaddressed=sum(opener.misaddressed for opener in openers),
        orphans=inbox.orphans + outbox.orphans,
        duplicates=inbox.duplicates,
        corrupt=inbox.corrupt,
        refused=mishaps.refused,
        too_large=mishaps.too_large,
        expired=mishaps.expired,
        fragments_sent=outbox.fragments_sent,
        fragments_resent=outbox.fragments_resent,
        repairs_sent=outbox.repairs_sent,
        fragments_received=inbox.fragments,
        loss_out=outbox.loss,
        loss_in=hearing.loss,
        airtime_s=air.airtime_s,
        goodput_out_bps=outbox.goodput_bps(access.link_s(now)),
        goodput_in_bps=8 * inbox.received_bytes / hearing.bulk_s if hearing.bulk_s > 0 else 0.0,
        last_heard=hearing.at,
        silent=outbox.silent,
        in_contact=access.is_up(now),
        eta_out_s=out_s,
        eta_out_passes=out_passes,
        eta_in_s=in_s,
        eta_in_passes=in_passes,
        objects=tuple(
            replace(each, eta_s=left_s, eta_passes=passes)
            for each in objects
            for left_s, passes in [when(each.eta_s)]
        ),
    )
