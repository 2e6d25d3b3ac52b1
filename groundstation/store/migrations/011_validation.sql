ALTER TABLE answer ADD COLUMN validation REAL;
