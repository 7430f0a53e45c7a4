"""Certification: what is drawn, drawing it on Beam, keeping the votes, and the certificates they give."""
