package e2e

// deviations are the replies in which our daemon differs from the C daemon on purpose. docs/differences.md tells
// their users' side.
var deviations = []deviation{}
