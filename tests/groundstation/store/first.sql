CREATE TABLE mission (
  id BLOB NOT NULL,
  name TEXT NOT NULL,
  seed INTEGER NOT NULL,
  graph BLOB NOT NULL,
  finished_at REAL,
  why TEXT
);
CREATE TABLE node (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  epoch INTEGER NOT NULL,
  floor_epoch INTEGER NOT NULL,
  floor_seq INTEGER NOT NULL,
  heard_at REAL,
  health TEXT
);
CREATE TABLE round (
  number INTEGER PRIMARY KEY,
  opened_at REAL NOT NULL,
  deadline_at REAL NOT NULL,
  model BLOB NOT NULL,
  closed_at REAL,
  accuracy REAL,
  loss REAL,
  bits_down REAL
);
CREATE TABLE answer (
  round INTEGER NOT NULL REFERENCES round(number),
  node INTEGER NOT NULL REFERENCES node(id),
  state TEXT NOT NULL,
  changed_at REAL NOT NULL,
  samples INTEGER,
  loss REAL,
  train_s REAL,
  cpu_s REAL,
  energy_j REAL,
  payload BLOB,
  PRIMARY KEY (round, node)
);
CREATE TABLE counter (
  node INTEGER NOT NULL REFERENCES node(id),
  name TEXT NOT NULL,
  value REAL NOT NULL,
  PRIMARY KEY (node, name)
);
CREATE TABLE model (
  number INTEGER PRIMARY KEY,
  payload BLOB NOT NULL
);
