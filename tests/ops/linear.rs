//! Linear layers, alone and two with an activation between them.

use elektron::backend::{Backend, Before, LinearBwd, LinearFwd, WeightGrad, Write};
use elektron::model::config::Activation;

use super::{BEFORE, CPU, added, check, dot, noise};

fn linear_case(rows: usize, inputs: usize, outputs: usize, activation: Option<Activation>, write: Write) {
    let (x, w, b) = (noise(1, rows * inputs), noise(2, outputs * inputs), noise(3, outputs));
    let g = noise(4, rows * outputs);
    let run = |x: &[f64], w: &[f64], b: &[f64]| {
        let (mut pre, mut out) = (vec![0.0; rows * outputs], vec![f64::NAN; rows * outputs]);
        let activation = activation.map(|a| (a, &mut pre[..]));
        CPU.linear_fwd(LinearFwd {
            inputs,
            outputs,
            inp: x,
            weight: w,
            bias: b,
            activation,
            out: &mut out,
            pitch: outputs,
        })
        .unwrap();
        (pre, out)
    };
    let (pre, _) = run(&x, &w, &b);
    let (mut dx, mut dw, mut db) = (vec![BEFORE; x.len()], vec![BEFORE; w.len()], vec![BEFORE; b.len()]);
    CPU.linear_bwd(LinearBwd {
        inputs,
        outputs,
        rows,
        weight: &w,
        activation: activation.map(|a| (a, &pre[..])),
        dout: &mut g.clone(),
        pitch: outputs,
        before: None,
        dinp: (write, &mut dx),
        dweight: Some((&x, &mut dw)),
        dbias: Some(&mut db),
    })
    .unwrap();
    let dx = if write == Write::Add { added(&dx) } else { dx };
    let name = format!("linear {rows}x{inputs}x{outputs} {activation:?}");
    check(&format!("{name} dx"), &x, &dx, |x| dot(&run(x, &w, &b).1, &g));
    check(&format!("{name} dw"), &w, &added(&dw), |w| dot(&run(&x, w, &b).1, &g));
    check(&format!("{name} db"), &b, &added(&db), |b| dot(&run(&x, &w, b).1, &g));
}

/// out = W₂ act(W₁ x + b): the second layer's backward pass goes through the activation, weight gradients come together.
fn two_layers_case((rows, inputs, middle, outputs): (usize, usize, usize, usize), activation: Activation) {
    let (x, w1, b1) = (noise(1, rows * inputs), noise(2, middle * inputs), noise(3, middle));
    let (w2, b2, g) = (noise(4, outputs * middle), noise(5, outputs), noise(6, rows * outputs));
    let run = |x: &[f64], w1: &[f64], b1: &[f64], w2: &[f64]| {
        let (mut pre, mut act) = (vec![f64::NAN; rows * middle], vec![f64::NAN; rows * middle]);
        let mut out = vec![f64::NAN; rows * outputs];
        CPU.linear_fwd(LinearFwd {
            inputs,
            outputs: middle,
            inp: x,
            weight: w1,
            bias: b1,
            activation: Some((activation, &mut pre)),
            out: &mut act,
            pitch: middle,
        })
        .unwrap();
        CPU.linear_fwd(LinearFwd {
            inputs: middle,
            outputs,
            inp: &act,
            weight: w2,
            bias: &b2,
            activation: None,
            out: &mut out,
            pitch: outputs,
        })
        .unwrap();
        (pre, act, out)
    };
    let (pre, act, _) = run(&x, &w1, &b1, &w2);
    let (mut dpre, mut dx) = (vec![BEFORE; rows * middle], vec![f64::NAN; x.len()]);
    let (mut dw1, mut dw2, mut db1) =
        (vec![BEFORE; w1.len()], vec![BEFORE; w2.len()], vec![BEFORE; b1.len()]);
    let (mut dout, mut again) = (g.clone(), vec![f64::NAN; act.len()]);
    CPU.linear_bwd(LinearBwd {
        inputs: middle,
        outputs,
        rows,
        weight: &w2,
        activation: None,
        dout: &mut dout,
        pitch: outputs,
        before: Some(Before { activation, pre: &pre, act: Some(&mut again), dbias: &mut db1 }),
        dinp: (Write::Set, &mut dpre),
        dweight: None,
        dbias: None,
    })
    .unwrap();
    CPU.linear_bwd(LinearBwd {
        inputs,
        outputs: middle,
        rows,
        weight: &w1,
        activation: None,
        dout: &mut dpre,
        pitch: middle,
        before: None,
        dinp: (Write::Set, &mut dx),
        dweight: None,
        dbias: None,
    })
    .unwrap();
    assert_eq!(again, act);
    CPU.weight_grads(vec![
        WeightGrad { inputs: middle, outputs, inp: &again, dout: &dout, dweight: &mut dw2 },
        WeightGrad { inputs, outputs: middle, inp: &x, dout: &dpre, dweight: &mut dw1 },
    ])
    .unwrap();
    let name = format!("two layers {rows}x{inputs}x{middle}x{outputs} {activation:?}");
    check(&format!("{name} dx"), &x, &dx, |x| dot(&run(x, &w1, &b1, &w2).2, &g));
    check(&format!("{name} dw1"), &w1, &added(&dw1), |w1| dot(&run(&x, w1, &b1, &w2).2, &g));
    check(&format!("{name} db1"), &b1, &added(&db1), |b1| dot(&run(&x, &w1, b1, &w2).2, &g));
    check(&format!("{name} dw2"), &w2, &added(&dw2), |w2| dot(&run(&x, &w1, &b1, w2).2, &g));
}

#[test]
fn two_linear_layers() {
    for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
        two_layers_case((1, 1, 1, 1), activation);
        two_layers_case((7, 5, 9, 3), activation);
        // With more rows one of them may meet ReLU's kink within the step of a difference.
        two_layers_case((67, 8, 33, 5), activation);
    }
}

#[test]
fn linear() {
    let kinds = [None, Some(Activation::Gelu), Some(Activation::GeluTanh), Some(Activation::Relu)];
    for activation in kinds {
        linear_case(1, 1, 1, activation, Write::Set);
        linear_case(7, 5, 3, activation, Write::Add);
        linear_case(131, 17, 65, activation, Write::Set);
    }
    linear_case(3, 4, 2050, None, Write::Set);
}
