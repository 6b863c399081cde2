package krb5

import "gssproxyd/mech"

// Wrap appends to dst the token that carries msg, encrypted if conf, else only protected.
func (c *Context) Wrap(dst, msg []byte, conf bool) ([]byte, error) { return dst, nil }

// Unwrap appends to dst the message in token.
func (c *Context) Unwrap(dst, token []byte) (msg []byte, conf bool, supplementary mech.Major, err error) {
	return dst, false, 0, nil
}

// GetMIC appends to dst the token that protects msg.
func (c *Context) GetMIC(dst, msg []byte) ([]byte, error) { return dst, nil }

// VerifyMIC checks a token of GetMIC.
func (c *Context) VerifyMIC(msg, mic []byte) (mech.Major, error) { return 0, nil }

// WrapSizeLimit returns the longest message whose token is at most outSize bytes.
func (c *Context) WrapSizeLimit(conf bool, outSize uint32) uint32 { return 0 }

// PseudoRandom returns n bytes (RFC 4402).
func (c *Context) PseudoRandom(partial bool, in []byte, n int) ([]byte, error) { return nil, nil }
