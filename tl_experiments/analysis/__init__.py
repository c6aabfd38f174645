"""From the records of a sweep to a comparison: table, intervals, transfer gain, verdict. Reads records only."""
