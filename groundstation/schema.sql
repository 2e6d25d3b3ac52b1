-- The mission's memory. One writer (the daemon); WAL, so that `groundstation status` reads beside it.
-- Times are Unix seconds (REAL): the ground has a clock; the boards need none.

CREATE TABLE mission (
  id BLOB NOT NULL,              -- 8 bytes, travels in every task and update
  name TEXT NOT NULL,
  seed INTEGER NOT NULL,
  graph BLOB NOT NULL,           -- BLAKE2s-64 of train.onnx
  classes TEXT,                  -- names of the classes in their order, JSON
  finished_at REAL,
  why TEXT                       -- why it finished: rounds, target
);

CREATE TABLE node (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  epoch INTEGER NOT NULL,        -- our durable boot counter towards this node
  salt BLOB NOT NULL,            -- of the link's keys; zeros until both ends have agreed on one
  floor_epoch INTEGER NOT NULL,  -- replay floor under that salt: nothing at or below is accepted again
  floor_seq INTEGER NOT NULL,
  spent TEXT,                    -- of what may be sent to the node, JSON
  offered BLOB,                  -- digest of the last model that was offered to it, and
  fragment_bytes INTEGER,        -- how that is cut
  heard_at REAL,
  health TEXT                    -- last health message, JSON
);

CREATE TABLE round (
  number INTEGER PRIMARY KEY,
  opened_at REAL NOT NULL,
  deadline_at REAL NOT NULL,     -- for display: the wall's clock may be set
  left_s REAL,                   -- what was left of its time when that was noted last
  model BLOB NOT NULL,           -- the object that was sent: task header and packed weights
  closed_at REAL,
  accuracy REAL,                 -- of the quantized global model that this round made
  loss REAL,
  bits_down REAL                 -- bits a weight of that model, every byte counted
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
  payload BLOB,                  -- the update object, whole
  why TEXT,                      -- it is lost
  PRIMARY KEY (round, node)
);

CREATE TABLE counter (
  node INTEGER NOT NULL REFERENCES node(id),
  name TEXT NOT NULL,
  value REAL NOT NULL,
  PRIMARY KEY (node, name)
);

CREATE TABLE model (
  number INTEGER PRIMARY KEY,    -- the round that made it
  payload BLOB NOT NULL          -- packed weights
);
