"""One authenticated conversation with one peer: objects cross whole, once, and at the link's pace.

It has no I/O: frames and `now` (seconds, monotonic) go in, frames and events come out. The port's owner calls
`receive` for each frame heard, `tick` and `transmit` when `wakeup` says so, and acts on the events.

The order is HELLO, messages, answers, questions, then bulk by priority; all of it at the link's pace, in turn
and in contact."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial

from onboard.wire.broadcast import BroadcastListener
from onboard.wire.config import Identity, Limits, Medium, Security, SessionState
from onboard.wire.events import Event, GroupAnswer, LinkSnapshot, Message, PeerHeard, PeerUnreachable
from onboard.wire.framing import frame as framing
from onboard.wire.framing.frame import GROUP_ID, OVERHEAD_BYTES, Frame, Origin, PendingFrame, Type
from onboard.wire.medium.contact_gate import ByteQuota, ContactGate, Contacts, Window
from onboard.wire.medium.medium_access import MAX_CLOSING, MediumAccess, Timing
from onboard.wire.messages import BadMessage, Cancel, Done, MessageQueue, Report
from onboard.wire.security.link_diagnostics import LinkDiagnostics
from onboard.wire.security.seal import Refusal
from onboard.wire.security.security_context import SecurityContext
from onboard.wire.transfer.inbox import Inbox
from onboard.wire.transfer.incoming import Incoming, Partial
from onboard.wire.transfer.outbox import MakeFrame, Outbox
from onboard.wire.transfer.outgoing import deadline_of
from onboard.wire.transfer.peer import Presence, ReceiveStats

_EPSILON_S = 1e-6  # sums of airtimes are not exact; a microsecond is less than a bit of any link here
_LOSSY = 0.05  # from this loss on, a delimiter before each frame is worth its byte
_QUESTIONS = (Type.HELLO, Type.OFFER, Type.POLL)
_CLOSING = (Type.POLL, Type.REPORT, Type.DONE, Type.CANCEL)


class Session:
    """One end of a link. Raises ValueError for a key or an epoch out of range, and for contacts that overlap.

    `incoming`: objects being received or not yet accepted, by digest. `done`: digests of the objects accepted
    last, oldest first, to be persisted with what the objects did. `message_bytes`: the longest MSG that fits.
    `bytes_sent`: on the wire. `air`: the link's times, and the delimiters before the latest frame."""

    def __init__(
        self,
        identity: Identity,
        medium: Medium,
        security: Security,
        state: SessionState,
        *,
        limits: Limits | None = None,
        now: float = 0.0,
    ) -> None:
        limits = limits or Limits()
        self._began = now
        self.node, self.peer, self.epoch, self.link = identity.node, identity.peer, state.epoch, medium.link
        self._wire_bytes = medium.wire_bytes
        self._timing = Timing(medium, primary=identity.primary, most_lead_bytes=limits.lead_bytes)
        self._security = SecurityContext(identity, security, state, hello_s=self._timing.greeting_s)
        self._handshake = self._security.handshake
        self.air = MediumAccess(self._timing, now)
        quota = ByteQuota(limits.bytes_per_contact, limits.bytes_per_day, state.spent, now)
        self._gate = ContactGate(self.air, medium.contacts, quota, now)
        self._hearing = ReceiveStats()
        began = self._gate.link_s(now)
        self.presence = Presence(self._handshake, self._timing, limits.quiet_s, began)
        self._liveness = self.presence.liveness
        self._outbox = Outbox(
            self._timing, medium.link, self._hearing, self._liveness,
            epoch=state.epoch, slack=limits.reorder_slack,
        )  # fmt: skip
        self._inbox = Inbox(self._timing, self._hearing, limits, state.done)
        self.incoming: Mapping[bytes, Incoming] = self._inbox.incoming
        self.done: Collection[bytes] = self._inbox.done
        key, floor = security.group_key, state.group_replay_floor
        self._listener = None if key is None else BroadcastListener(identity, key, self._inbox, floor)
        self.message_bytes = self._timing.payload_bytes
        self._messages = MessageQueue(self.message_bytes)
        others = [] if self._listener is None else [self._listener.opener]
        self._openers = [self._security.opener, self._handshake.opener, *others]
        self._diagnostics = LinkDiagnostics(identity.node, identity.peer, self._security.opener)
        self._answer: PendingFrame | None = None  # on half-duplex, the last one of this turn
        self._asked = (Type.DATA, 0, 0)  # of the frame heard last: type, object, and frames sent by then
        self.bytes_sent = 0

    # -- the application's side ------------------------------------------------------------------------

    @property
    def replay_floor(self) -> tuple[int, int]:
        """The peer's highest (epoch, seq) taken: persist it with what the frames brought about."""
        return self._security.opener.floor

    @property
    def salt(self) -> bytes:
        """The salt in force, under which `replay_floor` holds."""
        return self._handshake.salt

    @property
    def group_replay_floor(self) -> tuple[int, int]:
        return self._listener.opener.floor if self._listener else (0, 0)

    def rekey(self, salt: bytes) -> None:
        """Put the salt of a `Rekeyed` in force. Raises ValueError for any other."""
        self._security.use(salt)
        self._diagnostics.rekeyed()
        self._hearing.rekeyed()
        self._inbox.peer_restarted()
        self._liveness.heard()

    def plan(self, contacts: Iterable[Window] | None, now: float) -> None:
        """Replace the contact plan. Raises ValueError for contacts that overlap."""
        self._gate.plan(contacts, now)

    @property
    def contacts(self) -> Contacts:
        return self._gate.contacts

    def offer(
        self, kind: int, payload: bytes, now: float, *, priority: int = 4,
        deadline_s: float | None = None, fragment_bytes: int | None = None,
    ) -> bytes:  # fmt: skip
        """Queue an object, once; returns its 16 B digest. `priority`: 0 (first) to 7. `deadline_s`: seconds
        of contact until it expires. `fragment_bytes`: as `fragment_bytes` gave it before a restart, so that
        nothing held is resent. Raises ValueError for a value out of range or too many fragments."""
        now = self._gate.link_s(now)
        deadline = deadline_of(kind, priority, deadline_s, now)
        return self._outbox.offer(
            kind, payload, now, priority=priority, deadline=deadline, fragment_bytes=fragment_bytes
        )

    def fragment_bytes(self, digest: bytes) -> int:
        """Return the fragment length of an object that is being sent. Raises KeyError."""
        return self._outbox.fragment_bytes(digest)

    def cancel(self, digest: bytes, now: float) -> None:
        self._outbox.cancel(digest, self._gate.link_s(now))

    def send_message(self, payload: bytes, now: float, priority: int = 1) -> None:
        """Queue one MSG, unreliable and ahead of all DATA. Raises ValueError if it does not fit a frame."""
        self._messages.add(payload, priority)

    def resume(self, partial: Partial) -> None:
        """Resume a half-received object from the spool. Raises ValueError if it contradicts itself."""
        self._inbox.resume(partial, self._gate.link_s(self._began))

    def accept(self, digest: bytes, now: float) -> None:
        """Note that an arrived object is held durably: DONE leaves, unless it was withdrawn meanwhile."""
        self._inbox.accept(digest)

    def forget(self, *digests: bytes) -> None:
        self._inbox.forget(digests)

    def refuse(self, digest: bytes, reason: int, now: float) -> None:
        """Refuse an incoming object: CANCEL leaves, unless it is gone already."""
        self._inbox.refuse(digest, reason)

    # -- the wire's side -------------------------------------------------------------------------------

    def receive(self, frame: bytes, now: float, origin: Origin = None) -> list[Event]:
        """Take in a frame from the port; what is not the peer's, whole and new, only counts."""
        self.presence.proof_of_life = False
        if self._listener is not None and framing.is_broadcast(frame):
            return self._overhear(self._listener, frame, now)
        if self._handshake.takes(frame):
            return self._greet(frame, now, origin)
        newest = self._security.opener.floor
        if (opened := self._security.open(frame)) is None:
            at = self._gate.link_s(now)
            why, told = self._security.opener.refusal, self._security.refused(frame, at)
            return self._diagnostics.dropped(frame, why, at, is_earlier=self._security.is_earlier) + told
        known_before, hearing = self._hearing.epoch, self._hearing
        at, now, wire_bytes = now, self._gate.link_s(now), self._wire_bytes(len(frame))
        restarted = hearing.heard(opened, wire_bytes, at, now, object_comes=bool(self.incoming))
        was_silent = self.presence.heard(opened, at, now, proves=self._security.opener.floor != newest)
        if restarted and known_before:
            self._inbox.peer_restarted()
        events = self._diagnostics.proven(opened, now)
        events += [PeerHeard()] if restarted or was_silent else []
        left = min(opened.fragment, MAX_CLOSING) if opened.type in _CLOSING else 0
        self.air.heard(
            now, over=opened.over, loss=hearing.loss, burst=hearing.burst, left=left, frame_bytes=len(frame),
            again=self._asks_again(opened.type, opened.object_id),
        )  # fmt: skip
        try:
            return events + self._diagnostics.count(self._dispatch(opened, now))
        except BadMessage:
            self._inbox.malformed += 1
            return events

    def tick(self, now: float) -> list[Event]:
        """Act on time alone: deadlines, silence, a due record of quota usage."""
        at, now = now, self._gate.link_s(now)
        if not self.air.turn.in_turn(now):
            self._outbox.fell_still(now)
        silent = self._liveness.silent
        events = self._diagnostics.count(self._inbox.tick(now) + self._outbox.tick(now))
        if self._liveness.silent and not silent:
            events.append(PeerUnreachable())
        spent = self._gate.quota.record(at)
        return events if spent is None else [*events, spent]

    def transmit(self, now: float) -> bytes | None:
        """Return the next frame, if one may leave now. Call until it returns None."""
        sent_at, now = now, self._gate.link_s(now)
        if not self._gate.is_open(sent_at) or self.air.opens_at(now) > now + _EPSILON_S:
            return None
        now += _EPSILON_S
        turn = self.air.turn
        closing = self.presence.is_reachable and turn.closing > 0 and turn.in_turn(now)
        if closing:  # repeat what matters most: the turn's answer, or its question
            send = self._answer or self._security.least(self._outbox.asks_about)
        elif (make := self._next_frame(now)[1]) is not None:
            send = make()
        elif self.presence.is_reachable and turn.in_turn(now):
            send = self._security.least()  # the rest was cancelled: only hand the turn over
        else:
            return None
        length = OVERHEAD_BYTES + len(send.payload)
        lossy = max(self._outbox.loss.measured, self._hearing.loss) >= _LOSSY
        end = self.air.sent(length, now, lossy=lossy)
        fragment, poll = send.fragment, send.poll
        if closing:
            fragment = turn.count_down()
            over = fragment == 0
        else:
            self._note_sent(send, end)
            over = self._timing.half_duplex and self._ends_turn(end, now)
        if over:
            poll = poll or self._outbox.asked is not None
            turn.hand_over(self._outbox.asked)
            self._outbox.handed_over(end)
            self._answer = None
        self.presence.destination = send.to
        on_wire = self.air.lead_bytes + self._wire_bytes(length)
        self.bytes_sent += on_wire
        self._gate.quota.spend(on_wire, sent_at)
        return self._security.seal(send, fragment=fragment, poll=poll, over=over)

    @property
    def damaged(self) -> int:
        return self._diagnostics.damaged

    def wakeup(self, now: float) -> float:
        """Return the earliest time at which `transmit` or `tick` may have work, if no frame comes."""
        link_now = self._gate.link_s(now)
        ready = link_now if self.air.turn.in_turn(link_now) else self._next_frame(link_now)[0]
        leaves = math.inf if ready == math.inf else self.air.opens_at(max(link_now, ready))
        ticks = min(self._inbox.tick_at(), self._outbox.tick_at())
        return self._gate.wakes_at(leaves, ticks, now)

    # -- what it counts --------------------------------------------------------------------------------

    @property
    def outgoing(self) -> dict[bytes, int]:
        """Digests and kinds of the objects that are queued or being sent, without withdrawn ones."""
        return {each.digest: each.kind for each in self._outbox.objects()}

    @property
    def airtime_s(self) -> float:
        return self.air.pacer.airtime_s

    @property
    def frames_received(self) -> int:
        return sum(opener.opened for opener in self._openers)

    @property
    def silent(self) -> bool:
        return self._liveness.silent

    def snapshot(self, now: float) -> LinkSnapshot:
        inbox, outbox, hearing, handshake = self._inbox, self._outbox, self._hearing, self._handshake
        refused = sum((opener.counts for opener in self._openers), Counter[Refusal]())
        told, sealer, link_now = self._diagnostics, self._security.sealer, self._gate.link_s(now)
        objects = [*outbox.progress(link_now), *inbox.progress()]
        when = partial(self.contacts.when, now)
        (out_s, out_passes), (in_s, in_passes) = (  # objects share one way's air: their times add up
            when(sum(each.eta_s for each in objects if each.incoming == way)) for way in (False, True)
        )
        return LinkSnapshot(
            now=now, epoch=self.epoch, peer_epoch=hearing.epoch,
            key_id=sealer.key_id, encrypted=self._security.encrypted,
            frames_sent=sealer.seq, bytes_sent=self.bytes_sent,
            frames_received=self.frames_received, bytes_received=hearing.bytes,
            malformed=inbox.malformed + refused["malformed"],
            bad_tags=refused["bad_tags"], unknown_keys=refused["unknown_keys"],
            plain_dropped=refused["plain_dropped"], encrypted_dropped=refused["encrypted_dropped"],
            replays=refused["replays"], unproven=handshake.unproven, misaddressed=refused["misaddressed"],
            hellos_sent=handshake.sent, hellos_received=handshake.heard, hellos_stale=handshake.stale,
            orphans=inbox.orphans + outbox.orphans, duplicates=inbox.duplicates, corrupt=inbox.corrupt,
            refused=told.refused, too_large=told.too_large, expired=told.expired,
            fragments_sent=outbox.fragments_sent, fragments_resent=outbox.fragments_resent,
            repairs_sent=outbox.repairs_sent, fragments_received=inbox.fragments,
            loss_out=outbox.loss.measured, loss_in=hearing.loss, airtime_s=self.airtime_s,
            goodput_out_bps=outbox.goodput_bps(link_now),
            goodput_in_bps=8 * inbox.received_bytes / hearing.bulk_s if hearing.bulk_s > 0 else 0.0,
            last_heard=hearing.at, silent=self.silent, in_contact=self.contacts.is_up(now),
            eta_out_s=out_s, eta_out_passes=out_passes, eta_in_s=in_s, eta_in_passes=in_passes,
            objects=tuple(
                replace(each, eta_s=eta_s, eta_passes=passes)
                for each in objects
                for eta_s, passes in [when(each.eta_s)]
            ),
        )  # fmt: skip

    def _next_frame(self, now: float) -> tuple[float, MakeFrame | None]:
        """Return when a frame may leave next, inf for never as things stand, and its maker if that is now."""
        hello_at = self.presence.frame_at()
        if hello_at <= now:
            return hello_at, partial(self.presence.frame, now)
        if self.presence.alone:
            return hello_at, None
        answer_at, seq = math.inf, self._security.next_seq
        if not self._outbox.held_back:
            if self._messages:
                return -math.inf, self._messages.first  # at once, behind no more than the port holds
            answer_at = self._inbox.due_at()
            if answer_at <= now:
                return answer_at, partial(self._inbox.due, now, self.replay_floor, self.group_replay_floor)
        at, make = self._outbox.next_frame(now, seq, self._gate.bulk_at, self.air.closes_at - now)
        return min(hello_at, answer_at, at), make

    def _note_sent(self, send: PendingFrame, end: float) -> None:
        self.presence.sent(send, end)
        if send.is_outgoing:
            self._outbox.sent(send, self._security.next_seq, end)
        elif send.type is Type.MSG:
            self._messages.sent()
        elif send.object_id:
            self._answer = send
            self._inbox.sent(send, end)

    def _asks_again(self, kind: Type, object_id: int) -> bool:
        """Return whether the peer repeats its last question, although something left meanwhile."""
        question, left = (kind, object_id), self._security.frames_sent
        asked, self._asked = self._asked, (*question, left)
        return kind in _QUESTIONS and asked[:2] == question and asked[2] < left

    def _dispatch(self, frame: Frame, now: float) -> list[Event]:
        """Answers go to the outbox, all else to the inbox. Raises BadMessage for a senseless payload."""
        outbox, kind = self._outbox, frame.type
        if frame.object_id >= GROUP_ID and kind in (Type.REPORT, Type.DONE, Type.CANCEL):
            left_s = frame.fragment * self._timing.back_airtime_s(OVERHEAD_BYTES + len(frame.payload))
            return [GroupAnswer(frame, left_s)]
        if kind is Type.REPORT:
            report, sealer = Report.decode(frame.payload), self._security.sealer
            if frame.object_id and not (report.epoch == sealer.epoch and report.seq > sealer.seq):
                return outbox.on_report(report, frame.object_id, self._hearing.order(frame), now)
            return []
        if kind is Type.DONE:
            return outbox.on_done(Done.decode(frame.payload), now)
        if kind is Type.CANCEL and not (cancel := Cancel.decode(frame.payload)).by_sender:
            return outbox.on_cancel(cancel, frame.object_id, now)
        if kind is Type.MSG:
            return [Message(frame.payload)]
        return self._inbox.handle(frame, now)

    def _overhear(self, listener: BroadcastListener, frame: bytes, now: float) -> list[Event]:
        link_now = self._gate.link_s(now)
        taken = listener.handle(frame, link_now)
        if taken is None:
            return []
        events, over = taken
        self._hearing.bytes += self._wire_bytes(len(frame))
        self._hearing.at = self.presence.active_at = now
        self.air.heard(link_now, over=over, loss=self._hearing.loss, burst=self._hearing.burst)
        return events

    def _greet(self, raw: bytes, now: float, origin: Origin) -> list[Event]:
        at, now = now, self._gate.link_s(now)
        frame, events = self.presence.greet(raw, at, now, origin)
        if frame is None:
            return self._diagnostics.dropped(raw, self._handshake.opener.refusal, now)
        events += self._diagnostics.proven(frame, now, proves=self._handshake.is_confirmed)
        self._hearing.bytes += self._wire_bytes(len(raw))
        if self.presence.proof_of_life:
            self._hearing.at = at
        if self.presence.is_asked:  # a replay gives no turn
            again, hearing = self._asks_again(Type.HELLO, 0), self._hearing
            self.air.heard(now, over=frame.over, loss=hearing.loss, burst=hearing.burst, again=again)
        return events + self._security.greeted(now)

    def _ends_turn(self, end: float, now: float) -> bool:
        burst, loss = max(self._hearing.burst, self._outbox.loss.burst), self._liveness.loss
        loss = loss if self._liveness.silent else max(loss, self._hearing.loss, self._outbox.loss.measured)
        more = self._next_frame(now)[1] is not None
        return self.air.ends_turn(end, more=more, loss=loss, burst=burst)
