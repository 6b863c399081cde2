package xdr

// Printer collects the lines of a printed message.
type Printer struct {
	out  []byte
	path []byte
}
