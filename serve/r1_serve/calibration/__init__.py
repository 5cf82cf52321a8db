"""``r1 calibrate``: what a step costs on a fleet that runs, measured through its router as a client sees it."""
