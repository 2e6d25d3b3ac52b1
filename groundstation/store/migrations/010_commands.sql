-- Commands to boards.
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
