CREATE TABLE mission (
  id BLOB NOT NULL,
  name TEXT NOT NULL,
  seed INTEGER NOT NULL,
  graph BLOB NOT NULL,
  classes TEXT,
  finished_at REAL,
  why TEXT,
  digest BLOB
);
CREATE TABLE node (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  epoch INTEGER NOT NULL,
  spent TEXT,
  offered BLOB,
  fragment_bytes INTEGER,
  heard_at REAL,
  health TEXT,
  digest BLOB
);
CREATE TABLE round (
  number INTEGER PRIMARY KEY,
  opened_at REAL NOT NULL,
  deadline_at REAL NOT NULL,
  left_s REAL,
  model BLOB NOT NULL,
  closed_at REAL,
  accuracy REAL,
  loss REAL,
  bits_down REAL,
  digest BLOB
);
CREATE TABLE answer (
  round INTEGER NOT NULL REFERENCES round(number),
  node INTEGER NOT NULL REFERENCES node(id),
  state TEXT NOT NULL,
  changed_at REAL NOT NULL,
  asking INTEGER NOT NULL DEFAULT 0,
  samples INTEGER,
  loss REAL,
  train_s REAL,
  cpu_s REAL,
  energy_j REAL,
  payload BLOB,
  object BLOB,
  why TEXT,
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
  number INTEGER PRIMARY KEY,
  payload BLOB NOT NULL,
  digest BLOB
);
CREATE TABLE command (
  id BLOB NOT NULL PRIMARY KEY,
  node INTEGER NOT NULL,
  name TEXT NOT NULL,
  arguments TEXT NOT NULL,
  state TEXT NOT NULL,
  queued_at REAL NOT NULL,
  expires_at REAL NOT NULL,
  sent_at REAL,
  acknowledged_at REAL,
  ended_at REAL,
  why TEXT,
  result TEXT,
  digest BLOB
);
CREATE TABLE ledger (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  generation INTEGER NOT NULL,
  sum BLOB NOT NULL,
  digest BLOB NOT NULL
);
