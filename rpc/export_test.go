package rpc

import "time"

// SetTimeout has records time out after d.
func (s *Server) SetTimeout(d time.Duration) { s.timeout = d }
