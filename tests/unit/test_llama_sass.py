"""The counter of machine instructions, on lines as cuobjdump prints them."""

from __future__ import annotations

from tests.llama.sass import count, family

LINES = """
		Function : _Z9mul_mat_qIL9ggml_type2ELi64ELb1EEvPKc
        /*0008*/                   MOV R1, c[0x0][0x20] ;   /* 0x00 */
                                                            /* 0x00 */
        /*0010*/               @P0 IDP.4A.S8.S8 R2, R3, R4, R2 ;
        /*0018*/              @!P1 HFMA2.MRG_H0_H0 R2, R3, R4, R2 ;
        /*0028*/                   F2F.F16.F32 R2, R3 ;
        /*0030*/                   HADD2 R2, R3, R4 ;
		Function : _Z9mul_mat_qIL9ggml_type2ELi8ELb0EEvPKc
        /*0008*/                   EXIT ;
		Function : _ZN50_GLOBAL__N__0a1b2c3d_11_softmax_cu_00000000_1111113topEf
        /*0008*/                   HMUL2 R2, R3, R4 ;
""".splitlines()


def test_instructions_are_counted_by_template() -> None:
    found = count(LINES)
    assert set(found) == {"mul_mat_q", "top"}
    item = found["mul_mat_q"]
    assert (item.kernels, item.empty, item.instructions) == (2, 2, 6)
    assert (item.dp4a, item.with_dp4a, item.half) == (1, 1, 2)
    assert item.kinds == {"HFMA2": 1, "HADD2": 1}
    assert found["top"].half == 1


def test_a_kernel_of_some_length_is_not_empty() -> None:
    lines = ["\t\tFunction : _Z3addPf"]
    lines += [f"        /*{8 * place:04x}*/   FADD R1, R2, R3 ;" for place in range(65)]
    assert (count(lines)["add"].empty, count(lines)["add"].instructions) == (0, 65)


def test_names() -> None:
    assert family("_Z7acc_f32PKfS0_Pfl") == "acc_f32"
    assert family("_Z13mul_mat_vec_qIL9ggml_type8ELi1EEvPK") == "mul_mat_vec_q"
    assert family("_ZN3cub3x24ScanE") == "cub"
    assert family("plain") == "plain"
