"""A network made smaller: factorise, plan ranks, truncate, recover accuracy."""
