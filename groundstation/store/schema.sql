-- The mission's memory. One writer (the daemon); WAL, so that `groundstation status` reads beside it.
-- Times are Unix seconds (REAL): the ground has a clock; the boards need none.

CREATE TABLE mission (
  id BLOB NOT NULL,              -- 8 bytes, travels in every task and update
  name TEXT NOT NULL,
  seed INTEGER NOT NULL,
  graph BLOB NOT NULL,           -- BLAKE2s-64 of train.onnx
  classes TEXT,                  -- names of the classes in their order, JSON
  finished_at REAL,
  why TEXT,                      -- why it finished: rounds, target
  digest BLOB                    -- of the row, here and in all tables (`groundstation/store/database.py`)
);

CREATE TABLE node (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  epoch INTEGER NOT NULL,        -- our durable boot counter towards this node
  spent TEXT,                    -- of what may be sent to the node, JSON
  offered BLOB,                  -- digest of the last model that was offered to it, and
  fragment_bytes INTEGER,        -- how that is cut
  heard_at REAL,
  health TEXT,                   -- last health message, JSON
  digest BLOB
);

CREATE TABLE round (
  number INTEGER PRIMARY KEY,
  opened_at REAL NOT NULL,
  deadline_at REAL NOT NULL,     -- for display: the wall's clock may be set
  left_s REAL,                   -- what was left of its time when that was noted last
  model BLOB NOT NULL,           -- the object that was sent: task header and packed weights; empty once no
                                 -- answer to it can be taken
  closed_at REAL,
  accuracy REAL,                 -- of the quantized global model that this round made
  loss REAL,
  bits_down REAL,                -- bits a weight of that model, every byte counted
  digest BLOB
);

CREATE TABLE answer (
  round INTEGER NOT NULL REFERENCES round(number),
  node INTEGER NOT NULL REFERENCES node(id),
  state TEXT NOT NULL,           -- asked, delivered, answered, failed, refused; lost: answered, and of no use;
                                 -- merged: of an earlier round
  changed_at REAL NOT NULL,
  asking INTEGER NOT NULL DEFAULT 0,  -- how often the node was asked before
  samples INTEGER,
  loss REAL,
  train_s REAL,
  cpu_s REAL,
  energy_j REAL,
  payload BLOB,                  -- the update object, whole, for as long as it may be averaged again
  object BLOB,                   -- its digest on the wire: it is not taken again
  why TEXT,                      -- it is lost
  validation REAL,               -- of the task's metric, on images that the board holds out
  digest BLOB,
  PRIMARY KEY (round, node)
);

CREATE TABLE counter (
  node INTEGER NOT NULL REFERENCES node(id),
  name TEXT NOT NULL,
  value REAL NOT NULL,
  digest BLOB,
  PRIMARY KEY (node, name)
);

CREATE TABLE model (
  number INTEGER PRIMARY KEY,    -- the round that made it
  payload BLOB NOT NULL,         -- packed weights
  digest BLOB
);

CREATE TABLE command (
  id BLOB NOT NULL PRIMARY KEY,  -- 8 bytes, which travel with it
  node INTEGER NOT NULL,
  name TEXT NOT NULL,
  arguments TEXT NOT NULL,       -- JSON
  state TEXT NOT NULL,           -- queued, sent, acknowledged, done, refused, expired
  queued_at REAL NOT NULL,       -- by the clock of whoever queued it; the order of a board's commands
  expires_at REAL NOT NULL,
  sent_at REAL,
  acknowledged_at REAL,
  ended_at REAL,
  why TEXT,                      -- it was refused, or has expired
  result TEXT,                   -- what the board answered, JSON
  digest BLOB
);

CREATE TABLE ledger (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  generation INTEGER NOT NULL,   -- transactions so far
  sum BLOB NOT NULL,             -- of the digests of all rows
  digest BLOB NOT NULL           -- of these two and of the tables' definitions
);
