package spnego

import "gssproxyd/mech"

// What only tests look at.

func (s *state) Inner() Context    { return s.inner }
func (s *state) Mech() mech.OID    { return s.mech }
func (s *state) Established() bool { return s.established }
func (a *Acceptor) Raw() bool      { return a.raw }
