// Command gen writes the Go codecs of package xdr from its .x files. It runs in the directory of
// package xdr: go generate ./xdr
package main

import (
	"fmt"
	"os"
)

// jobs lists what is generated: from which file, to which, and the prefix that names lose on the
// way.
var jobs = []struct{ from, to, prefix string }{
	{"gss_proxy.x", "gss_proxy.go", "gssx_"},
	{"rpc.x", "rpc.go", "rpc_"},
	{"gen/testdata/sample.x", "sample_test.go", ""},
}

func main() {
	for _, j := range jobs {
		src, err := generate(j.from, j.prefix)
		if err == nil {
			err = os.WriteFile(j.to, src, 0o666)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "gen:", err)
			os.Exit(1)
		}
	}
}

// generate returns the Go source for the .x file at path.
func generate(path, prefix string) ([]byte, error) {
	src, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f, err := parse(path, string(src))
	if err != nil {
		return nil, err
	}
	return write(f, prefix)
}
