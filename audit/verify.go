package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"os"
	"time"
)

// Place is a line of a file.
type Place struct {
	File string `json:"file"`
	Line int64  `json:"line"` // from 1
}

// String returns "file:line".
func (p Place) String() string { return fmt.Sprintf("%s:%d", p.File, p.Line) }

// maxNamed is how many torn lines a report names.
const maxNamed = 1000

// Report is what [Verify] has found in lines that are as they were written.
type Report struct {
	Lines uint64    `json:"lines"`
	First uint64    `json:"first_seq"` // the seq of the first line
	Begun bool      `json:"begun"`     // the chain begins in the first file; otherwise an older one belongs before it
	From  time.Time `json:"from,omitzero"`
	To    time.Time `json:"to,omitzero"`
	Head  Head      `json:"head"`

	// What is not there, as lines of the log say themselves.
	Lost      uint64  `json:"lost"`          // events that could not be written
	TornLines uint64  `json:"torn_lines"`    // not written to their end
	Torn      []Place `json:"torn,omitzero"` // the first of them

	// Writing is the last line, if it has no end and a program has the file open to write to.
	Writing *Place `json:"writing,omitzero"`
}

// Broken is the error of [Verify] that names the first line that is not as it was written, or is not
// where it was.
type Broken struct {
	Place
	What string `json:"what"` // is wrong
}

// Error returns "file:line: what".
func (e *Broken) Error() string { return e.Place.String() + ": " + e.What }

// Verify reads the files of a chain, the oldest first, and returns what is in them. Where the chain is
// broken the error is a [*Broken], and the report is of what comes before. Each head that is given
// has to be in the chain.
//
// It keeps no more than a line in memory.
func Verify(files []string, heads ...Head) (*Report, error) {
	v := newVerifier(heads)
	for i, name := range files {
		if err := v.open(name, i == len(files)-1); err != nil {
			return &v.report, err
		}
	}
	return &v.report, v.end()
}

// verifier goes along a chain.
type verifier struct {
	report Report
	heads  []Head
	chain  chain
	known  bool  // what the chain's last line is
	at     Place // the line it is at
	begins bool  // no line of this file was looked at yet
	buf    []byte

	// Lines that are not whole since the last one that is. The first whole one behind them has to say
	// so, but for one that a file begins with.
	torn     []Place // not more than maxNamed
	tornN    uint64
	tornHash hash.Hash
}

func newVerifier(heads []Head) *verifier {
	return &verifier{heads: heads, chain: newChain(), tornHash: sha256.New()}
}

func (v *verifier) open(name string, last bool) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	unended, err := v.file(name, f)
	if err == nil && last && unended && v.tornN > 0 && written(f) {
		v.report.Writing = &Place{name, v.at.Line}
		v.forget(1)
	}
	return err
}

// file goes on with a file, and reports whether its last line has no newline.
func (v *verifier) file(name string, f io.Reader) (unended bool, err error) {
	v.at, v.begins = Place{name, 0}, true
	r := bufio.NewReaderSize(f, maxLine)
	within := false // what comes is the rest of a line that is too long
	for {
		line, err := r.ReadSlice('\n')
		if err != nil && err != io.EOF && err != bufio.ErrBufferFull {
			return false, err // with the file's name
		}
		if len(line) > 0 {
			if !within {
				v.at.Line++
			}
			whole := bytes.TrimSuffix(line, []byte{'\n'})
			w, ok := parseWhole(whole)
			if within || err == bufio.ErrBufferFull || !ok {
				v.notWhole(line, !within)
			} else if err := v.line(whole, w); err != nil {
				return false, err
			}
			within = err == bufio.ErrBufferFull
			unended = line[len(line)-1] != '\n'
		}
		if err == io.EOF {
			return unended, nil
		}
	}
}

// notWhole takes note of a line, or of part of one, that is not whole.
func (v *verifier) notWhole(b []byte, starts bool) {
	v.tornHash.Write(b)
	if !starts {
		return
	}
	v.tornN++
	if len(v.torn) < maxNamed {
		v.torn = append(v.torn, v.at)
	}
}

// forget takes the last n lines that are not whole for none.
func (v *verifier) forget(n uint64) {
	v.tornN -= n
	v.torn = v.torn[:min(uint64(len(v.torn)), v.tornN)]
}

// said takes the lines that are not whole as ones that the log has told of.
func (v *verifier) said() {
	v.report.TornLines += v.tornN
	if room := maxNamed - len(v.report.Torn); room > 0 {
		v.report.Torn = append(v.report.Torn, v.torn[:min(room, len(v.torn))]...)
	}
	v.torn, v.tornN = v.torn[:0], 0
	v.tornHash.Reset()
}

// content is what the chain's own rules need to know of a line.
type content struct {
	Time   time.Time
	Kind   Kind
	Digest string
	Lost   uint64
	Prev   string
}

// line goes on with a line that is whole.
func (v *verifier) line(line []byte, w whole) error {
	var c content
	parsed := json.Unmarshal(line, &c) // nothing of it is believed before the hash is seen to fit
	first := v.begins
	v.begins = false
	if !v.known {
		if err := v.first(c, w); err != nil {
			return err
		}
	}
	v.buf = unhashed(v.buf[:0], line)
	if fits := v.chain.next(v.buf); fits != w.hash || w.seq != v.chain.seq+1 {
		return v.gap(c, w, first)
	}
	if parsed != nil {
		return v.broken("is no JSON that this program reads: %v", parsed)
	}
	v.chain.seq, v.chain.last = w.seq, w.hash
	r := &v.report
	switch {
	case c.Kind == Torn && (c.Digest == hex.EncodeToString(v.tornHash.Sum(nil)) || v.olderTorn()):
		v.said()
	case v.tornN > 0 && !(first && (c.Kind == Begun || c.Kind == Continued)):
		return v.notSaid()
	case c.Kind == Torn:
		return v.broken("says that there is a torn line before it, of another digest than what is there: that was changed or taken out")
	case c.Kind == Lost:
		r.Lost += c.Lost
	}
	if r.Lines++; r.Lines == 1 {
		r.First, r.Begun, r.From = w.seq, c.Kind == Begun, c.Time
	}
	r.To, r.Head = c.Time, v.chain.head()
	return v.compare(r.Head)
}

// olderTorn reports whether a torn line may be in a file before those that were given.
func (v *verifier) olderTorn() bool { return v.report.Lines == 1 && !v.report.Begun }

// first begins with the first line of all. What it follows is what it says.
func (v *verifier) first(c content, w whole) error {
	switch {
	case c.Kind == Begun && w.seq == 1:
	case c.Kind == Continued && w.seq > 1 && isHash([]byte(c.Prev)):
		v.chain.seq, v.chain.last = w.seq-1, digest([]byte(c.Prev))
		if err := v.compare(v.chain.head()); err != nil {
			return err
		}
	case v.tornN > 0:
		return v.notSaid()
	default:
		return v.broken("begins neither a chain nor a file: what was before it was cut off, or it was changed")
	}
	v.known = true
	return nil
}

// gap says what is wrong with a line that does not follow the one before.
func (v *verifier) gap(c content, w whole, first bool) error {
	before, after := v.chain.seq, w.seq
	switch {
	case v.tornN > 0 && after != before+1:
		return v.notSaid()
	case first && c.Kind == Begun && before > 0:
		return v.broken("another chain begins here, after seq %d of the files before: lines between them are missing, or the log was begun anew", before)
	case after > before+1:
		return v.broken("seq %d follows seq %d: what was between them is missing", after, before)
	case after <= before:
		return v.broken("seq %d follows seq %d: it is not in its place, or there twice", after, before)
	}
	return v.broken("was changed, or what it follows was: its hash does not fit")
}

// notSaid says that there are lines that are not whole, of which the log knows nothing.
func (v *verifier) notSaid() error {
	v.at = v.torn[0]
	return v.broken("is no line of an audit log, and what follows says nothing of it: it was changed or put in")
}

func (v *verifier) broken(format string, args ...any) error {
	return &Broken{v.at, fmt.Sprintf(format, args...)}
}

// compare holds a head against those that the chain has to have.
func (v *verifier) compare(is Head) error {
	for _, h := range v.heads {
		if h.Seq == is.Seq && h.Hash != is.Hash {
			return v.broken("the head that was given for seq %d has another hash: this is not the chain that was written", h.Seq)
		}
	}
	return nil
}

// end looks at what has to be there at the end.
func (v *verifier) end() error {
	if v.tornN > 0 {
		v.at = v.torn[0]
		return v.broken("is no line of an audit log, or not all of one, and nothing follows: the program was ended while it wrote it, or somebody has cut or changed it")
	}
	if v.report.Lines == 0 {
		return v.broken("there is no line")
	}
	for _, h := range v.heads {
		switch {
		case h.Seq > v.chain.seq:
			return v.broken("the chain ends here, with seq %d, and the head that was given has seq %d: its end was cut off, or a later file is not among those given", v.chain.seq, h.Seq)
		case h.Seq+1 < v.report.First:
			return fmt.Errorf("the head %d is of an older file than those given, which begin with seq %d; give that one too", h.Seq, v.report.First)
		}
	}
	return nil
}
