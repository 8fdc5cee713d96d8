"""Who is being served: one session per episode, each in a session of the engine, at most so many.

A session's window goes on block by block with the frames really seen, as in training; one frame alone says nothing of
what happened since, so it begins a new window. A full window begins again at its last frame, as in the
server published with arXiv 2602.15922. What the guard knows of a robot outlives windows, resets and evictions.
"""

import collections
import time
import zlib

import numpy as np

from launch.serving.engine import Answer, Engine, Request
from launch.serving.messages import BadRequest, Feedback, Observation
from launch.serving.session import Guarded, Session

LIVE = 60.0  # seconds after its last request in which an open connection's session makes no room for others
REMEMBERED = 4096  # ended sessions of which the guard's knowledge is kept, the newest


class Sessions:
    """The table, least recently used first. Runs on the server's event loop alone."""

    def __init__(self, engine: Engine, *, per_connection: int, remembers: int):
        """remembers: frames that a session keeps where the protocol leaves that to the server; 0: clients do."""
        self.engine, self.per_connection, self.remembers = engine, per_connection, remembers
        self.opened = self.evicted = 0
        self._table: collections.OrderedDict[str, Session] = collections.OrderedDict()
        self._free = list(range(engine.sessions))
        self._guarded: collections.OrderedDict[str, Guarded] = collections.OrderedDict()  # guards of ended sessions
        self._prompts: dict[object, str] = {}  # prompts of connections that sent one with a reset

    def __len__(self) -> int:
        return len(self._table)

    def clear(self) -> None:
        """Ends every session."""
        for session in list(self._table.values()):
            self._close(session)

    def plan(self, observation: Observation, owner) -> tuple[Session, Request]:
        """The session, now busy, and what the engine is asked. Raises BadRequest; nothing has changed then."""
        name = _name(observation.session, owner)
        session = self._table.get(name)
        self._check_owner(session, observation, owner)
        observation, done = self._completed(session, observation, owner)
        text = self._tokens(observation.prompt)
        block, views = self._next(session, observation)
        if session is None:
            session = self._open(name, owner)
        self._table.move_to_end(name)
        session.owner, session.busy, session.used = owner, True, time.monotonic()
        if observation.reset:
            session.chunks = 0
        if observation.release:
            session.guarded = session.guarded._replace(held=False)
        key = zlib.crc32(name.encode()) if observation.session else session.number, session.chunks
        return session, Request(session.place, block, views, observation.state, text, key, observation.in_flight,
                                session.guarded.last, self._executed_whole(observation), session.guarded.held, done)

    def done(self, session: Session, observation: Observation, request: Request, answer: Answer) -> None:
        """The engine has answered."""
        session.block, session.chunks, session.step = request.block, session.chunks + 1, observation.step
        session.prompt, session.feedback = self._prompt(observation, session.owner), None
        session.guarded = Guarded(answer.actions[-1], answer.held)
        if self.remembers:
            session.frames = self._remembered(session, observation)

    def add_feedback(self, feedback: Feedback, owner) -> None:
        """Keeps what was seen and done since the chunk before. Raises BadRequest."""
        session = self._table.get(_name(feedback.session, owner))
        if session is None or session.owner is not owner or not session.block:
            raise BadRequest("nothing has been predicted yet: send an observation first")
        count, length = len(next(iter(feedback.views.values()))), self.engine.block_frames
        if count != length:
            raise BadRequest(f"found {count} frames: send the {length} of the chunk, every "
                             f"{self.engine.robot.layout.frame_stride} control steps")
        session.feedback = feedback

    def end(self, name: str | None, owner, prompt: str | None = None) -> None:
        """Ends a connection's session of that name, or all of them. Unknown names have ended already. prompt: of its
        next ones."""
        for session in [s for s in self._table.values() if s.owner is owner]:
            if name is None or session.name == f"id:{name}":
                self._close(session)
        if prompt is not None:
            self._prompts[owner] = prompt

    def leave(self, owner) -> None:
        """A connection has closed: its named sessions wait for another one, until they are evicted."""
        for session in [s for s in self._table.values() if s.owner is owner]:
            session.owner = None
            if not session.name.startswith("id:"):
                self._close(session)
        self._guarded.pop(_name(None, owner), None)
        self._prompts.pop(owner, None)

    def _completed(self, session: Session | None, observation: Observation, owner) -> tuple:
        """(the observation with what came before it, the actions executed since [n, action dims] or None)."""
        observation = observation._replace(prompt=self._prompt(observation, owner))
        if observation.prompt is None:
            raise BadRequest("no prompt is known: send {'reset': True, 'prompt': ...} first")
        if not observation.first_only or session is None or not session.block:
            return observation, None
        if session.feedback is None:
            raise BadRequest("what was seen and done since the last chunk is missing: send it (compute_kv_cache), then "
                             "ask for the next one")
        return observation._replace(views=session.feedback.views), session.feedback.executed

    def _prompt(self, observation: Observation, owner) -> str | None:
        return self._prompts.get(owner) if observation.prompt is None else observation.prompt

    def _executed_whole(self, observation: Observation) -> bool:
        """Whether the frames say that the chunk before was executed to its end."""
        count = len(next(iter(observation.views.values())))
        return not self.remembers and not observation.reset and count == self.engine.block_frames

    def _check_owner(self, session: Session | None, observation: Observation, owner) -> None:
        if session and session.owner not in (None, owner):
            raise BadRequest(f"session {observation.session!r} is in use by another connection")

    def _tokens(self, prompt: str):
        try:
            return self.engine.tokenize(prompt)
        except ValueError as error:
            raise BadRequest(str(error)) from error

    def _next(self, session: Session | None, observation: Observation) -> tuple[int, dict]:
        """(block to predict, the frames that it needs)."""
        count, length = len(next(iter(observation.views.values()))), self.engine.block_frames
        last = {view: frames[-1:] for view, frames in observation.views.items()}
        if observation.reset:
            return 1, last
        fresh = session is None or session.block == 0
        if fresh and count > 1:
            who = f"session {observation.session!r}" if observation.session else "this connection's session"
            raise BadRequest(f"{who} is new here, or was evicted: its first message should be a reset or hold one "
                             f"frame, found {count} frames")
        self._check_step(session, observation, begins=count == 1)
        if self.remembers:
            # A block of as many frames as are kept sees each once; one of twice as many sees each twice.
            which = -(-np.arange(1, length + 1) * self.remembers // length) - 1
            views = {view: frames[which] for view, frames in self._remembered(session, observation).items()}
        elif count in (1, length):
            views = observation.views
        else:
            raise BadRequest(f"found {count} frames: send 1, which begins a new window, or the {length} of a block, "
                             f"every {self.engine.robot.layout.frame_stride} control steps since the last request")
        full = not fresh and session.block == self.engine.last_block
        if fresh or full or observation.prompt != session.prompt or (count == 1 and not self.remembers):
            return 1, last
        return session.block + 1, views

    def _check_step(self, session: Session | None, observation: Observation, begins: bool) -> None:
        if session is None or observation.step is None or session.step is None:
            return
        expected = session.step + self.engine.robot.layout.actions_per_block
        if observation.step <= session.step:
            raise BadRequest(f"the observation is of step {observation.step}, older than the cache, which holds step "
                             f"{session.step}")
        if not begins and observation.step != expected:
            raise BadRequest(f"the observation is of step {observation.step}, the cache goes on at step {expected}: "
                             f"send one frame, or reset, to begin a new window")

    def _remembered(self, session: Session, observation: Observation) -> dict:
        """The last frames with the new ones; the oldest repeats in front of too few."""
        joined = {view: np.concatenate([session.frames[view], frames]) if session and session.frames else frames
                  for view, frames in observation.views.items()}
        return {view: np.concatenate([np.repeat(frames[:1], max(0, self.remembers - len(frames)), axis=0),
                                      frames[-self.remembers:]]) for view, frames in joined.items()}

    def _open(self, name: str, owner) -> Session:
        own = [s for s in self._table.values() if s.owner is owner]
        if len(own) >= self.per_connection:
            self._evict(own)  # a connection that floods takes room from nobody but itself
        elif not self._free:
            stale = time.monotonic() - LIVE
            gone = [s for s in self._table.values() if s.owner is None]
            self._evict([*gone, *own, *(s for s in self._table.values() if s.used < stale)])
        session = Session(name, self._free.pop(), self.opened, owner, guarded=self._guarded.pop(name, Guarded()))
        self.opened += 1
        self._table[name] = session
        return session

    def _evict(self, candidates: list[Session]) -> None:
        idle = next((s for s in candidates if not s.busy), None)
        if idle is None:
            raise BadRequest(f"the server is full: all {self.engine.sessions} sessions are live; try again later")
        self._close(idle)
        self.evicted += 1

    def _close(self, session: Session) -> None:
        if self._table.get(session.name) is session:
            del self._table[session.name]
            self._free.append(session.place)
            self._guarded[session.name] = session.guarded
            while len(self._guarded) > REMEMBERED:
                self._guarded.popitem(last=False)


def _name(session: str | None, owner) -> str:
    """The prefix keeps a client from naming a connection that has no name of its own."""
    return f"id:{session}" if session else f"connection:{id(owner)}"
