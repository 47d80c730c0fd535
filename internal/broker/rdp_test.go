package broker

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sft"
	"sft/internal/frame"
	"sft/internal/rdp"
	"sft/internal/rdp/rdptest"
)
