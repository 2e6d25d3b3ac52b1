-- Every start of the ground begins each link under a new salt, where no earlier frame opens.
ALTER TABLE node DROP COLUMN salt;
ALTER TABLE node DROP COLUMN floor_epoch;
ALTER TABLE node DROP COLUMN floor_seq;
